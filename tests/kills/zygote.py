"""A process that has everything imported, the model loaded and the tasks read, and forks a run of a sweep whenever it
is asked to. What a run computes it computes anew: its engine has seen no prompt.

A line of JSON in: `folder`; `kill`, the kind and number of the event before which the run kills itself, or null; and
`whole`, whether on the whole bundled model, or on its first layer alone, at a third of the time.
A line out: `status` as the run ended, `seconds`, and the events that it counted if it lived.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections import Counter
from contextlib import chdir
from copy import deepcopy
from io import StringIO
from pathlib import Path
from time import monotonic
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # threads of a pool do not survive a fork

from rich.console import Console

from lynx_exp.config import Config, TaskConfig
from lynx_exp.engine import Engine
from lynx_exp.run.outcomes import Report
from lynx_exp.run.run_cells import run_cells
from lynx_exp.run.run_progress import Progress
from lynx_exp.store import files
from lynx_exp.store.cell_writer import CellWriter
from tests.run.real_cells import bundled

POLICIES: tuple[dict[str, Any], ...] = (
    {"name": "vanilla"},
    {"name": "no_drop"},
    {"name": "lynx", "alpha": 3.0, "beta": 2},
    {"name": "lynx", "alpha": 1.0, "beta": 2},
    {"name": "lynx", "alpha": 0.7, "beta": 1},
    {"name": "lynx_v1_latency", "keep_experts": 4},
    {"name": "lynx_v1_latency", "keep_experts": 8},
    {"name": "lynx_v1_latency", "keep_experts": 12},
    {"name": "top_k", "k": 1},
    {"name": "random_keep", "keep_experts": 8},
)
TASKS = {
    "mini_gsm8k": ["mini_gsm8k"],
    "mini_humaneval": ["mini_humaneval"],
    "mini_truthfulqa": ["mini_truthfulqa_gen", "mini_truthfulqa_mc1"],
    "mini_wmt16": ["mini_wmt16"],
}


def demo(documents: int) -> list[Config]:
    """80 cells: the demo's tasks and batch sizes under ten policies, without latency."""
    return [
        bundled(
            Path("results"),
            policy=policy,
            batch_size=size,
            task=TaskConfig(name=name, subtasks=subtasks),
            limit=documents,
        )
        for name, subtasks in TASKS.items()
        for size in (4, 16)
        for policy in POLICIES
    ]


class Events:
    """Counts, and ends the process without a word before the one that it is told."""

    def __init__(self, kill: tuple[str, int] | None) -> None:
        self.seen: Counter[str] = Counter()
        self._kill = kill

    def __call__(self, kind: str) -> None:
        if self._kill == (kind, self.seen[kind]):
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen[kind] += 1

    def watch(self, where: Any, name: str, kind: str, *, after: bool = False) -> None:
        real = getattr(where, name)

        def watched(*args: Any, **more: Any) -> Any:
            self(kind)
            made = real(*args, **more)
            if after:
                self(kind)
            return made

        setattr(where, name, watched)


def first_layer(whole: Engine) -> Engine:
    model = deepcopy(whole.model)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    return Engine(model, whole.tokenizer)


def sweep(documents: int, loaded: Engine) -> Report:
    engine = Engine(loaded.model, loaded.tokenizer)
    return run_cells(demo(documents), console=Console(file=StringIO()), open_engine=lambda _: engine)


def run(folder: str, kill: tuple[str, int] | None, documents: int, engine: Engine) -> dict[str, int]:
    events = Events(kill)
    events.watch(CellWriter, "commit", "commit", after=True)
    steps = (tempfile, "mkstemp"), (os, "fsync"), (os, "replace"), (os, "rename"), (files, "sync")
    for where, name in steps:
        events.watch(where, name, "write", after=True)
    events.watch(Progress, "step", "step")
    with chdir(folder):
        report = sweep(documents, engine)
    assert report.failed == 0, [outcome.error for outcome in report.outcomes]
    return dict(events.seen)


def main() -> None:
    whole = Engine.from_pretrained("lynx_tiny", dtype="float32", device="cpu")
    part = first_layer(whole)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        sweep(int(sys.argv[1]), part)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        begun, (reader, writer) = monotonic(), os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                kill = tuple(asked["kill"]) if asked["kill"] else None
                told = run(asked["folder"], kill, asked["documents"], whole if asked["whole"] else part)  # type: ignore[arg-type]
                os.write(writer, json.dumps(told).encode())
                status = 0
            except BaseException as error:
                os.write(writer, json.dumps({"error": f"{type(error).__name__}: {error}"[:2000]}).encode())
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            told = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer = {"status": status, "seconds": monotonic() - begun, "events": json.loads(told) if told else None}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
