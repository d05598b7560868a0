"""A fake engine and fake tasks: deterministic text, no model, with a place to fail at a chosen lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch

from lynx_exp.engine import BatchPlan, Fidelity, Job, LaneResult, Matched, Request, WindowTiming
from lynx_exp.engine.decoding.lane import lanes_of
from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.decoding.tokens import TokenRows
from lynx_exp.engine.timing.bandwidth import Hardware
from lynx_exp.engine.timing.breakdown import SECTIONS, Breakdown
from lynx_exp.engine.timing.prefill_timing import PrefillTiming
from lynx_exp.engine.timing.step_bytes import StepBytes
from lynx_exp.engine.timing.window_timing import StepTime
from lynx_exp.tasks import Metric, SampleScore, Scores, TaskRequest

HARDWARE = Hardware(bytes=StepBytes(once=10**7, expert=10**6, row=0, position=1000, layers=2), copy_gb_s=20.0)
TINY = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "vocab_size": 300}


class FakeTask:
    """A document's answer is right if its response has an even number."""

    data_digest = "d" * 64
    headline = "acc"
    runs_code = False
    revision = None
    fillers: tuple[TaskRequest, ...] = ()
    fillers_digest = None

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

    @property
    def members(self) -> tuple[Any, ...]:
        return (self,)

    def score(self, responses: list[Any], *, sandbox: Any = None) -> Scores:
        assert len(responses) == len(self.requests)
        docs = max(r.doc_id for r in self.requests) + 1
        if self.kind == "generate":
            good = [float(int(text.split()[-1]) % 2 == 0) for text in responses]
        else:
            good = [float(responses[2 * d][0] > responses[2 * d + 1][0]) for d in range(docs)]
        samples = [
            SampleScore(
                doc_id=d,
                target="even",
                filtered="?",
                score=g,
                scores={"acc,none": g},
                request=d * (len(self.requests) // docs),
            )
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


def token_rows(count: int, layers: int = 2) -> TokenRows | None:
    """Two experts a token and layer, one of them not run in the first."""
    if not count:
        return None
    experts = torch.tensor([[0, -1], [2, 3]]).expand(count, layers, 2)
    confidence = torch.full((count, layers), 0.25)
    kl = torch.arange(count, dtype=torch.float64) / 8
    return TokenRows(steps=list(range(count)), kl_N=kl, confidence_NL=confidence, experts_NLW=experts)


@dataclass
class FakeEngine:
    """Answers request r with `answer r`, a lane at a time: those of all jobs in the order in which the real one lets
    them in. Lanes that it ran are listed in `ran`."""

    ran: list[tuple[str, int]] = field(default_factory=list)
    opened: int = 0
    measured: int = 0
    stable: bool = True
    """Whether the warm-up of a measurement settles."""
    hardware: Hardware | None = HARDWARE
    fail: Callable[[int], BaseException | None] = lambda lanes_run: None
    """Told how many lanes ran before the next one."""
    fail_under: Callable[[Any], BaseException | None] = lambda policy: None
    """Told the policy of the next lane."""
    notes: list[str] = field(default_factory=list)
    """What every decoding says first."""
    acted: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    """(policy, where it acts) of every call."""
    packs: list[list[tuple[Any, tuple[int, ...]]]] = field(default_factory=list)
    """(policy, lanes) of the jobs of every decoding."""
    scored: list[str] = field(default_factory=list)
    """How, of every call."""
    calibrated: list[list[str]] = field(default_factory=list)
    """Prompts of every call to match_active."""
    num_layers: int = 2
    num_experts: int = 4
    top_k: int = 2
    context_length: int | None = None
    feeds_last_token: bool = False
    vocabulary: int = 256
    processing: tuple[tuple[str, Any], ...] = ()
    drawing: dict[str, Any] = field(default_factory=dict)
    experts_implementation: str | None = "per_expert"

    def tokenizer(self, texts: list[str], add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(input_ids=[[1] * add_special_tokens + list(text.encode()) for text in texts])

    def _lane(self, kind: str, plan: BatchPlan, lane: int, policy: Any) -> LaneResult:
        error = self.fail(len(self.ran)) or self.fail_under(policy)
        if error is not None:
            raise error
        self.ran.append((kind, lane))
        numbers = plan.lanes[lane]
        scored = kind == "score"
        return LaneResult(
            lane=lane,
            requests=numbers,
            token_ids=[[5, 6, 7]] * len(numbers),
            texts=[""] * len(numbers) if scored else [f"answer {n}" for n in numbers],
            finish_reasons=["scored" if scored else "eos"] * len(numbers),
            logprobs=[-float(n % 3) for n in numbers] if scored else None,
            greedy=[False] * len(numbers) if scored else None,
            live_rows=[len(numbers), 1],
            active_experts=[[4, 3], [2, 2]],
            changed=[[0, 0], [0, 0]] if policy is None else [[1, 2], [1, 0]],
        )

    def act(self, policy: Any, phases: Any = "decode", layers: str | None = None) -> Act:
        return Act(policy=policy, phases=phases, layers=layers)

    def job(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Any = None,
        phases: Any = "decode",
        *,
        layers: str | None = None,
        lanes: Any = None,
    ) -> Job:
        self.acted.append((policy, {"phases": phases, "layers": layers}))
        chosen = range(len(plan.lanes)) if lanes is None else lanes
        return Job(requests=requests, plan=plan, act=self.act(policy, phases, layers), lanes=tuple(chosen))

    def run_jobs(
        self,
        jobs: Sequence[Job],
        *,
        on_step: Callable[[int, int], None] = lambda tokens, rows: None,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[tuple[int, LaneResult]]:
        self.packs.append([(job.act.policy, tuple(job.lanes)) for job in jobs])
        for note in self.notes:
            on_note(note)
        for lane in lanes_of(jobs, list(dict.fromkeys(job.act for job in jobs))):
            job = jobs[lane.job]
            made = self._lane("run", job.plan, lane.number, job.act.policy)
            on_step(3 * lane.width, lane.width)
            yield lane.job, made

    def run_lanes(
        self, requests: Sequence[Request], plan: BatchPlan, policy: Any = None, **acts: Any
    ) -> Iterator[LaneResult]:
        for _, lane in self.run_jobs([self.job(requests, plan, policy, **acts)]):
            yield lane

    def score_lanes(
        self,
        requests: Sequence[Request],
        plan: BatchPlan,
        policy: Any,
        phases: Any = "decode",
        *,
        layers: str | None,
        lanes: Sequence[int],
        scoring: str,
        on_step: Callable[[int], None],
    ) -> Iterator[LaneResult]:
        assert all(request.continuation_ids for request in requests)
        self.acted.append((policy, {"phases": phases, "layers": layers}))
        self.scored.append(scoring)
        for lane in lanes:
            made = self._lane("score", plan, lane, policy)
            on_step(3 * len(made.requests))
            yield made

    def match_active(
        self, policy: Any, target: float, requests: Any, plan: Any, phases: str, *, layers: Any
    ) -> Matched:
        assert all(request.continuation_ids for request in requests)
        self.calibrated.append([bytes(request.prompt_ids[1:]).decode() for request in requests])
        found = replace(policy, **{policy.knob.parameter: 3})
        return Matched(policy=found, parameter=policy.knob.parameter, value=3, active=target + 0.1, target=target)

    def fidelity_of(
        self, requests: Sequence[Request], plan: BatchPlan, acts: Sequence[Act], *, tokens: Sequence[int] = ()
    ) -> Iterator[Fidelity]:
        tokens_of = tokens
        assert all(request.continuation_ids for request in requests)
        for act in range(len(acts)):
            for lane, numbers in enumerate(plan.lanes):
                for number in numbers:
                    tokens = len(requests[number].continuation_ids)
                    kl = 0.1 * (act + 1) * tokens
                    rows = token_rows(tokens - 1) if act in tokens_of else None
                    mass = {"retained": 0.5 * (tokens - 1), "prompt_tokens": 0, "prompt_retained": 0.0}
                    of = {"act": act, "lane": lane, "request": number, "tokens": tokens, "agreeing": tokens - 1}
                    yield Fidelity(**of, **mass, kl=kl, token_rows=rows)

    def selection_time(self, policy: Any, prompts: Any) -> float:
        return 12.5

    def close(self) -> None:
        """Nothing to free."""

    def measure_prefill(self, prompts: Any, *, policies: Any, repeats: int, **_: Any) -> PrefillTiming:
        ms = {name: [[20.0 + at]] * repeats for at, name in enumerate(("vanilla", *policies))}
        tokens = sum(map(len, prompts))
        active = dict.fromkeys(ms, 3.5)
        return PrefillTiming(ms=ms, active_experts=active, prompt_tokens=tokens, stable=True, precision_reached=True)

    def breakdown(self, prompts: Any, *, policies: Any, repeats: int, new_tokens: int, **_: Any) -> Breakdown:
        sections = {section: [float(at)] * repeats for at, section in enumerate(SECTIONS)}
        ms = {name: sections for name in ("vanilla", *policies)}
        return Breakdown(ms=ms, batch_size=len(prompts), new_tokens=new_tokens)

    def measure_windows(self, windows: Any, *, policies: Any, repeats: int, least: int, **_: Any) -> WindowTiming:
        self.measured += 1
        names, steps = ("vanilla", *policies), len(windows[0].steps)
        return WindowTiming(
            names=names,
            windows=tuple(windows[:least]),
            rows=tuple(
                StepTime(name, window, repeat, step, 1.5, 3.0)
                for name in names
                for window in range(least)
                for repeat in range(repeats)
                for step in range(steps)
            ),
            warmup_ms={name: [[9.0] * steps, [1.5] * steps, [1.5] * steps] for name in names},
            stable=self.stable,
            precision_reached=True,
            hardware=self.hardware,
            joules_per_token={} if self.hardware is None else dict.fromkeys(names, 0.5),
        )
