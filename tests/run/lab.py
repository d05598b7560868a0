"""A small random Mixtral behind the launcher, and cells to run on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from lynx_exp.config import Config, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.engine import Engine, Job, LaneResult
from lynx_exp.run.outcomes import Report
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.read import read_cells
from lynx_exp.tasks import TaskRequest
from tests.run.fakes import FakeTask

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "sliding_window": None,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # wide enough that tokens differ in their experts, and responses in what these say
}
POINTS: tuple[dict[str, Any], ...] = (
    {},
    {"policy": {"name": "lynx", "alpha": 1.0, "beta": 1, "min_batch": 2}},
    {"policy": {"name": "lynx", "alpha": 1.0, "beta": 1, "min_batch": 2}, "phases": "both"},
    {"policy": {"name": "random_keep", "keep_experts": 3, "seed": 1}},
    {"policy": {"name": "random_keep", "keep_experts": 3, "seed": 1}, "phases": "both"},
    {"policy": {"name": "random_keep", "keep_experts": 3, "seed": 1}, "phases": "prefill"},
    {"policy": {"name": "top_k", "k": 1}, "layers": "1:"},
    {"policy": {"name": "no_drop"}},
)
"""Of a sweep: what differs between cells of a pack."""


class Tokenizer:
    """A token a byte of a prompt, a character a token of a response: texts tell tokens apart."""

    eos_token_id = 2

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> Any:
        ids = [[1] * add_special_tokens + list(text.encode()) for text in texts]
        return type("Encoding", (), {"input_ids": ids})

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)


ENDS = tuple(chr(0x4E00 + token) for token in range(3, 300, 9))


class Task(FakeTask):
    """`short` and `long` generate, `choice` scores; prompts and continuations are of many lengths."""

    def __init__(self, name: str, docs: int) -> None:
        super().__init__(name, "choice" if name == "choice" else "generate", docs)
        words = [("as " * (doc % 4) + f"doc {doc * 7919 % 89}")[: 4 + 3 * doc] for doc in range(docs)]
        if name == "choice":
            asked = [(doc, " it is so"[: 2 + (doc + 3 * c) % 7]) for doc in range(docs) for c in range(2 + doc % 2)]
            requests = [TaskRequest(doc_id=doc, prompt=words[doc], continuation=text) for doc, text in asked]
        else:
            limits = {"until": ENDS, "max_new_tokens": 7} if name == "short" else {"max_new_tokens": 12}
            more = "y" * 60 if name == "wide" else ""
            requests = [TaskRequest(doc_id=doc, prompt=more + words[doc], **limits) for doc in range(docs)]
        self.requests = tuple(requests)

    def score(self, responses: list[Any], *, sandbox: Any = None) -> Any:
        parts = [sum(map(ord, given)) if isinstance(given, str) else given[0] for given in responses]
        self.requests, whole = tuple({request.doc_id: request for request in self.requests}.values()), self.requests
        try:
            if self.kind == "generate":
                return super().score([f"answer {part}" for part in parts])
            best = [
                max((part, number) for number, part in enumerate(parts) if whole[number].doc_id == doc.doc_id)[1]
                for doc in self.requests
            ]
            self.kind = "generate"
            return super().score([f"answer {number}" for number in best])
        finally:
            self.requests, self.kind = whole, "choice" if self.name == "choice" else "generate"


class Watched(Engine):
    """Notes the lanes that it was asked to decode."""

    asked: list[list[tuple[int, ...]]]

    def run_jobs(self, jobs: Sequence[Job], **more: Any) -> Iterator[tuple[int, LaneResult]]:
        self.asked.append([tuple(job.lanes) for job in jobs])
        yield from super().run_jobs(jobs, **more)


@dataclass(kw_only=True)
class Lab:
    """Runs cells in folders of their own, each run with an engine that remembers nothing of the one before."""

    model: Any
    root: Path
    out: StringIO = field(default_factory=StringIO)
    asked: list[list[tuple[int, ...]]] = field(default_factory=list)

    def folder(self) -> Path:
        made = self.root / str(len(list(self.root.iterdir())))
        made.mkdir()
        return made

    def load(self, name: str, limit: int | None = None, settings: Any = None) -> Task:
        return Task(name, limit or 7)

    def open_engine(self, config: Config) -> Engine:
        engine = Watched(self.model, Tokenizer(), max_rows=config.pack.max_rows)  # type: ignore[arg-type]
        engine.asked = self.asked
        return engine

    def run(self, configs: Sequence[Config], folder: Path, *, packed: bool = True) -> Report:
        self.asked.clear()
        with chdir(folder):
            console = Console(file=self.out, width=200)
            return run_cells(configs, packed=packed, console=console, open_engine=self.open_engine, load=self.load)

    def text(self) -> str:
        return self.out.getvalue()


def cell(point: dict[str, Any] = POINTS[0], subtasks: Sequence[str] = ("short", "choice"), **more: Any) -> Config:
    settings = {"policy": {"name": "vanilla"}, "batch_size": 3, "waves": 1, "device": "cpu"} | point | more
    return Config(
        model=ModelConfig(kind="random", id="mixtral", config=dict(SMALL)),
        task=TaskConfig(name="task", subtasks=list(subtasks)),
        tracker=TrackerConfig(),
        results="results",
        **settings,
    )


def found(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each cell below: the bytes of every file that says what came out. A time is no such thing."""
    cells: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("cell.json")):
        files: dict[str, Any] = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
        for name in ("status.json", "error.txt", "DONE"):
            files.pop(name, None)
        if "metrics.json" in files:
            files["metrics.json"] = json.loads(files["metrics.json"])
            files["metrics.json"].pop("selection_us", None)
        cells[path.parent.name] = files
    return cells


def states(report: Report) -> list[tuple[str, str | None]]:
    return [(outcome.state, outcome.error) for outcome in report.outcomes]


def statuses(folder: Path) -> list[str]:
    return [cell.status["state"] for cell in read_cells(folder)]


GRID = [cell(point, batch_size=size) for point in POINTS[:5] for size in (2, 3)]
