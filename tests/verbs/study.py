"""A small real study on the bundled model, and ways to change what it left on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from lynx_exp.config import Config, MeasureConfig, TaskConfig
from lynx_exp.exits import REQUEUE
from lynx_exp.results.main import main
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store import done
from lynx_exp.store.files import read_json, write_json, write_parquet
from lynx_exp.store.read import read_cells
from lynx_exp.store.tables import FIDELITY, RESPONSES, SAMPLES, STEPS, TIMING
from tests.run.real_cells import bundled

SCHEMAS = {"responses": RESPONSES, "steps": STEPS, "samples": SAMPLES, "timing": TIMING, "fidelity": FIDELITY}
VANILLA, NOISE_FLOOR = {"name": "vanilla"}, {"name": "noise_floor"}
LYNX = {"name": "lynx", "alpha": 1.0, "beta": 1, "min_batch": 2}
TOP_K = {"name": "top_k", "k": 1}
MEASURE = MeasureConfig(latency=True, windows=2, max_windows=2, new_tokens=2)
BOTH = TaskConfig(name="both", subtasks=["mini_truthfulqa_gen", "mini_truthfulqa_mc1"])
WMT = TaskConfig(name="mini_wmt16", subtasks=["mini_wmt16"])
MIX = TaskConfig(name="mix", subtasks=["mini_gsm8k", "mini_wmt16"], weights=[1.0, 1.0])


IDLE = {"precision_reached": True, "other_threads": 0.0, "cpus": 2}


def configs(root: Path) -> list[Config]:
    """Generation and choices, measured in every way; lanes with fillers and a corpus metric; a mix."""
    both = {"task": BOTH, "batch_size": 3, "limit": 5, "measure": MEASURE, "fidelity": True, "batching": "static"}
    wmt = {"task": WMT, "batch_size": 2, "waves": 2, "limit": 6}
    return [
        *(bundled(root, policy=policy, **both) for policy in (VANILLA, LYNX)),
        *(bundled(root, policy=policy, **wmt) for policy in (VANILLA, TOP_K, NOISE_FLOOR)),
        bundled(root, task=MIX, batch_size=2, limit=3, batching="static"),
    ]


def run_study(root: Path) -> Path:
    """Its folder."""
    assert run_cells(configs(root)).failed == 0
    for file in root.glob("default/*/timing.json"):  # as on a machine that does nothing else
        edit(file.parent, file.name, lambda info: info | IDLE)
    return root / "default"


def cell_of(study: Path, task: str = "both", policy: str = "lynx") -> Path:
    (found,) = (r.path for r in read_cells(study) if (r.info.get("task"), r.info.get("policy")) == (task, policy))
    return found


def seal(folder: Path) -> None:
    """DONE as if the cell had written what it now holds."""
    names = read_json(folder / "DONE")["files"]
    write_json(folder / "DONE", done.seal(folder, names))


def edit(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Of a JSON file its value, of a table its rows; `change` alters them, or gives others. DONE agrees."""
    if name.endswith(".json"):
        value = read_json(folder / name)
        write_json(folder / name, change(value) or value)
    else:
        rows = pa.parquet.read_table(folder / f"{name}.parquet").to_pylist()
        changed = change(rows) or rows
        write_parquet(folder / f"{name}.parquet", pa.Table.from_pylist(changed, schema=SCHEMAS[name]))
    seal(folder)


def results(*arguments: Any) -> int:
    """The exit code of `lynx-results`. A SIGTERM meanwhile is the tests' own, and ends them: the verb takes it
    for its own, and they would go on with a code that no file is the cause of."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        if stop.code == REQUEUE:
            raise KeyboardInterrupt from stop
        assert isinstance(stop.code, int)
        return stop.code
    return 0
