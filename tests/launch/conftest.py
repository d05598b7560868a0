"""A fake engine and fake tasks: deterministic text, no model, with a place to fail at a chosen lane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lynx_exp.config import Config, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.engine import Fidelity, LaneResult, Matched
from lynx_exp.launch.run import Report, run_cells
from lynx_exp.tasks import Metric, SampleScore, Scores, TaskRequest

TINY = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "vocab_size": 300}


class FakeTask:
    """A document's answer is right if its response has an even number."""

    data_digest = "d" * 64
    headline = "acc"

    def __init__(self, name: str, kind: str, docs: int) -> None:
        self.name, self.kind = name, kind
        if kind == "generate":
            self.requests = tuple(
                TaskRequest(doc_id=d, prompt=f"question {d}", until=("\n",), max_new_tokens=3) for d in range(docs)
            )
        else:
            self.requests = tuple(
                TaskRequest(doc_id=d, prompt=f"question {d}", continuation=f" choice {c}")
                for d in range(docs)
                for c in range(2)
            )

    def score(self, responses: list[Any]) -> Scores:
        assert len(responses) == len(self.requests)
        docs = max(r.doc_id for r in self.requests) + 1
        if self.kind == "generate":
            good = [float(int(text.split()[-1]) % 2 == 0) for text in responses]
        else:
            good = [float(responses[2 * d][0] > responses[2 * d + 1][0]) for d in range(docs)]
        samples = [
            SampleScore(doc_id=d, target="even", filtered="?", score=g, scores={"acc,none": g})
            for d, g in enumerate(good)
        ]
        metric = Metric(
            subtask=self.name,
            metric="acc",
            filter="none",
            value=sum(good) / docs,
            higher_is_better=True,
            headline=True,
            corpus=False,
            samples=docs,
        )
        return Scores(samples=samples, metrics=[metric])


@dataclass
class FakeEngine:
    """Answers request r with `answer r`; lanes that it ran are listed in `ran`."""

    ran: list[tuple[str, int]] = field(default_factory=list)
    opened: int = 0
    measured: int = 0
    fail: Callable[[int], BaseException | None] = lambda lanes_run: None
    acted: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    """(policy, where it acts) of every call."""
    calibrated: list[list[str]] = field(default_factory=list)
    """Prompts of every call to match_active."""
    num_layers: int = 2
    num_experts: int = 4
    top_k: int = 2

    def tokenizer(self, texts: list[str], add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(input_ids=[[1] * add_special_tokens + list(text.encode()) for text in texts])

    def _lanes(self, kind: str, plan: Any, lanes: Any, on_step: Callable[[int], None]) -> Any:
        for lane in lanes:
            error = self.fail(len(self.ran))
            if error is not None:
                raise error
            self.ran.append((kind, lane))
            numbers = plan.lanes[lane]
            scored = kind == "score"
            on_step(3 * len(numbers))
            yield LaneResult(
                lane=lane,
                requests=numbers,
                token_ids=[[5, 6, 7]] * len(numbers),
                texts=[""] * len(numbers) if scored else [f"answer {n}" for n in numbers],
                finish_reasons=["scored" if scored else "eos"] * len(numbers),
                logprobs=[-float(n % 3) for n in numbers] if scored else None,
                greedy=[False] * len(numbers) if scored else None,
                live_rows=[len(numbers), 1],
                active_experts=[[4, 3], [2, 2]],
            )

    def run_lanes(
        self,
        requests: Any,
        plan: Any,
        policy: Any = None,
        *,
        lanes: Any = None,
        on_step: Any = lambda _: None,
        **acts: Any,
    ) -> Any:
        self.acted.append((policy, acts))
        return self._lanes("run", plan, range(len(plan.lanes)) if lanes is None else lanes, on_step)

    def score_lanes(self, requests: Any, plan: Any, policy: Any, *, lanes: Any, on_step: Any, **acts: Any) -> Any:
        assert all(request.continuation_ids for request in requests)
        self.acted.append((policy, acts))
        return self._lanes("score", plan, lanes, on_step)

    def match_active(
        self, policy: Any, target: float, requests: Any, plan: Any, phases: str, *, layers: Any
    ) -> Matched:
        assert all(request.continuation_ids for request in requests)
        self.calibrated.append([bytes(request.prompt_ids[1:]).decode() for request in requests])
        found = replace(policy, **{policy.knob.parameter: 3})
        return Matched(policy=found, parameter=policy.knob.parameter, value=3, active=target + 0.1, target=target)

    def fidelity(self, requests: Any, plan: Any, policy: Any, phases: str, *, layers: Any) -> Any:
        assert all(request.continuation_ids for request in requests)
        for lane, numbers in enumerate(plan.lanes):
            for number in numbers:
                tokens = len(requests[number].continuation_ids)
                yield Fidelity(lane=lane, request=number, tokens=tokens, kl=0.1 * tokens, agreeing=tokens - 1)

    def selection_time(self, policy: Any, prompts: Any) -> float:
        return 12.5

    def measure(self, prompts: Any, *, batch_size: int, policies: Any, new_tokens: int, repeats: int, **_: Any) -> Any:
        assert len(prompts) == batch_size
        self.measured += 1
        names = ["vanilla", *policies]
        step_ms = {name: [[1.5] * new_tokens for _ in range(repeats)] for name in names}
        return SimpleNamespace(names=names, step_ms=step_ms, active_experts=dict.fromkeys(names, 3.0))


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """Configs of small cells: `config(policy={...}, subtasks=[...], batch_size=...)`."""

    def make(policy: dict[str, Any] | None = None, subtasks: tuple[str, ...] = ("gen",), **fields: Any) -> Config:
        return Config(
            model=fields.pop("model", None) or ModelConfig(kind="random", id="mixtral", config=dict(TINY)),
            policy=policy or {"name": "vanilla"},
            task=TaskConfig(name="task", subtasks=list(subtasks)),
            tracker=fields.pop("tracker", None) or TrackerConfig(),
            results=str(tmp_path / "results"),
            batch_size=fields.pop("batch_size", 2),
            device="cpu",
            **fields,
        )

    return make


@pytest.fixture
def bench() -> Any:
    """`bench.run(configs)` on `bench.engine`; `bench.text` is what was printed."""

    def load(name: str, limit: int | None = None) -> FakeTask:
        if name not in ("gen", "choice"):
            raise ValueError(f"task.subtasks={name}: unknown; known: gen, choice")
        return FakeTask(name, "generate" if name == "gen" else "choice", limit or 5)

    out = StringIO()
    bench = SimpleNamespace(engine=FakeEngine(), load=load)

    def open_engine(_config: Config) -> Any:
        bench.engine.opened += 1
        return bench.engine

    def run(configs: list[Config]) -> Report:
        console = Console(file=out, width=200)
        return run_cells(configs, console=console, open_engine=open_engine, load=load)

    bench.run = run
    bench.text = lambda: out.getvalue()
    return bench
