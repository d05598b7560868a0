"""What a finished cell shows in Weights & Biases: its config, curves, summary, samples and files. Without wandb."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from lynx_exp.store.provenance import scrub
from lynx_exp.store.read import CellRecord
from lynx_exp.store.reading import read_value
from lynx_exp.store.timing_info import hardware_numbers

SAMPLES_SHOWN = 100
STEPS_SHOWN = 512
"""Points of a curve; of a longer one every second, third ... decode step."""
SAMPLE_COLUMNS = (
    *("subtask", "doc_id", "score", "target", "filtered", "response", "finish_reason", "new_tokens", "lane", "verdict"),
)
STEP = "decode_step"


def run_id(*parts: str) -> str:
    """20 hex digits: the same of the same parts, so that a cell is one run however often it is logged."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def run_id_of(record: CellRecord) -> str:
    return run_id("cell", record.info["study"], record.info["cell_id"])


class InitArguments(TypedDict):
    """Arguments of `wandb.init` that name a run."""

    id: str
    name: str
    group: str
    job_type: str
    tags: NotRequired[list[str]]
    config: NotRequired[dict[str, object]]


def init_arguments(record: CellRecord) -> InitArguments:
    info = record.info
    return {
        "id": run_id_of(record),
        "name": f"{info['task']} {info['policy_label']} b{info['batch_size']}",
        "group": info["study"],
        "job_type": "eval",
        "tags": [str(info["task"]), str(info["policy"]), f"batch_{info['batch_size']}"],
        "config": config(record),
    }


def config(record: CellRecord) -> dict[str, object]:
    """The resolved config as it was run, with what the cell and its surroundings were."""
    stored = read_value(record.path / "config.yaml")
    label = {"policy_label": record.info["policy_label"]}  # what people group runs by
    return _fields(stored) | label | {"cell": _fields(record.info), "provenance": _fields(record.provenance)}


def _fields(values: Mapping[str, object]) -> dict[str, object]:
    return {str(key): _scrubbed(item) for key, item in values.items()}


def _scrubbed(value: object) -> object:
    if isinstance(value, dict):
        return _fields(value)
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    return scrub(value) if isinstance(value, str) else value


def summary(record: CellRecord) -> dict[str, object]:
    """The headline numbers.

    `score/SUBTASK`: the headline metric. `SUBTASK/METRIC,FILTER`: every metric. `active_experts`, `kl` and the others
    of metrics.json under their own names; `SUBTASK/active_experts`. `step_ms`, `vanilla_step_ms`, `speedup`: of timed
    cells, as tables show them; `step_gb`, `gb_s`, `s_mbu`, `copy_gb_s`, `j_per_token`: what
    the hardware gave, where it is known.
    """
    metrics = record.metrics
    found: dict[str, object] = {key: value for key, value in metrics.items() if _is_number(value)}
    for key, value in (metrics.get("matched") or {}).items():
        if _is_number(value):
            found[f"matched/{key}"] = value
    for subtask, numbers in (metrics.get("by_subtask") or {}).items():
        found |= {f"{subtask}/{key}": value for key, value in numbers.items() if _is_number(value)}
    for row in metrics["metrics"]:
        if row["value"] is not None:
            found[f"{row['subtask']}/{row['metric']},{row['filter']}"] = row["value"]
            if row["headline"]:
                found[f"score/{row['subtask']}"] = row["value"]
    found |= _times(record) | _hardware(record)
    return found | {"seconds": record.status.get("seconds"), "attempt": record.status.get("attempt")}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _times(record: CellRecord) -> dict[str, float]:
    from lynx_exp.store.step_times import headline

    table = record.timing()
    return {} if table is None else headline(table.to_pandas(), str(record.info["policy"]))


def _hardware(record: CellRecord) -> dict[str, float]:
    """What was not measured is not there."""
    return {name: value for name, value in hardware_numbers(record.timing_info).items() if value is not None}


def curves(record: CellRecord) -> Iterator[dict[str, object]]:
    """A row a decode step, in order: of each subtask the mean and the histogram (counts, edges) of the active experts
    of all lanes and layers, and the mean of live rows."""
    table = record.steps().to_pandas()
    if table.empty:
        return
    edges = np.arange(int(table["active_experts"].max()) + 2) - 0.5
    last = int(table["step"].max())
    shown = table[table["step"] % (last // STEPS_SHOWN + 1) == 0]
    for step, rows in shown.groupby("step", sort=True):
        row: dict[str, object] = {STEP: int(step)}
        for subtask, part in rows.groupby("subtask", sort=True):
            counts, _ = np.histogram(part["active_experts"], bins=edges)
            row[f"steps/{subtask}/active_experts"] = float(part["active_experts"].mean())
            row[f"steps/{subtask}/live_rows"] = float(part["live_rows"].mean())
            row[f"steps/{subtask}/histogram"] = (counts.tolist(), edges.tolist())
        yield row


def samples(record: CellRecord) -> list[list[object]]:
    """The first documents of every subtask in turn, columns as in SAMPLE_COLUMNS."""
    table = record.samples()
    known = [name for name in SAMPLE_COLUMNS if name in table.column_names]
    rows = table.select(known).to_pylist()
    by_subtask: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        by_subtask.setdefault(row["subtask"], []).append(row)
    share = max(SAMPLES_SHOWN // max(len(by_subtask), 1), 1)
    return [[row.get(name) for name in SAMPLE_COLUMNS] for part in by_subtask.values() for row in part[:share]]


def files(record: CellRecord) -> list[Path]:
    """The record itself."""
    return sorted(path for path in record.path.iterdir() if path.is_file() and path.suffix in (".json", ".parquet"))
