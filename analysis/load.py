"""Finished cells of a results folder as tidy frames."""

from __future__ import annotations

import json
import logging
from bisect import bisect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lynx_exp.store.cell_columns import FRAMES, columns_in, frame_columns
from lynx_exp.store.environment import fields_of
from lynx_exp.store.find import no_folder
from lynx_exp.store.read import CellRecord, read_cells
from lynx_exp.store.reading import Damaged, Missing, read_rows
from lynx_exp.store.sweeps import latest_sweeps
from lynx_exp.store.timing_info import hardware_numbers
from lynx_exp.wording import counted

log = logging.getLogger("analysis")


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """Frames with the columns that `lynx_exp.store.cell_columns.FRAMES` documents; each row names its `cell_id`.

    Unpacks into the three that most notebooks need: `cells, samples, steps = load("results/demo")`.
    """

    cells: pd.DataFrame
    """One row per finished cell."""
    metrics: pd.DataFrame
    """One row per (cell, subtask, metric, filter)."""
    samples: pd.DataFrame
    """One row per (cell, subtask, document)."""
    responses: pd.DataFrame
    """One row per (cell, subtask, request), without texts."""
    steps: pd.DataFrame
    """One row per (cell, subtask, lane, decode step, layer)."""
    prefill: pd.DataFrame = field(default_factory=pd.DataFrame)
    """One row per (cell, subtask, lane, layer); empty when no cell's policy acts on prompts."""
    timing: pd.DataFrame
    """One row per timed step; empty when no cell measured latency."""
    breakdown: pd.DataFrame = field(default_factory=pd.DataFrame)
    """One row per (cell, name, repeat, section); empty when no cell timed sections."""
    fidelity: pd.DataFrame
    """One row per (cell, subtask, request); empty when no cell compared distributions with vanilla's."""
    unfinished: tuple[str, ...] = ()
    """Cells that were left out: folder and state."""
    set_aside: tuple[str, ...] = ()
    """Cells that were set aside since a file of theirs is damaged, or of another form: folder, file and reason."""

    def __iter__(self) -> Iterator[pd.DataFrame]:
        return iter((self.cells, self.samples, self.steps))

    def of(self, cells: Collection[str]) -> Records:
        """The rows of some cells.

        Args:
            cells: Their ids, as in the column `cell_id`.

        Returns:
            Records with these rows alone.
        """
        frames = {name: getattr(self, name) for name in FRAMES}
        return replace(self, **{name: f[f["cell_id"].isin(cells)] for name, f in frames.items() if len(f)})


def load(root: str | Path, *, warn: bool = True) -> Records:
    """Read all finished cells at or below a folder. A cell that lies in two studies counts once.

    Args:
        root: A study's folder, or any folder above.
        warn: Log a line for unfinished cells and one for those that are set aside.

    Returns:
        One frame per kind of record (cells, samples, steps ...). Cells that are running, interrupted, failed or, of
        the latest sweeps, not begun are left out and named in `Records.unfinished`; those with a file that is
        damaged, or of another form, in `Records.set_aside`.

    Raises:
        ValueError: The folder does not exist, or holds no finished cell.
    """
    root = Path(root)
    if not root.is_dir():
        raise no_folder(root)
    found = read_cells(root)
    done = list({cell.info["cell_id"]: cell for cell in reversed(found) if cell.done}.values())[::-1]
    tables = {name: _tables_of(name, done) for name in _STACKED}
    damaged = {code: str(part) for of in tables.values() for code, part in of.items() if isinstance(part, Damaged)}
    unfinished = tuple(
        f"{cell.path.name} ({_state(cell)})" for cell in found if not cell.done and cell.set_aside is None
    )
    unfinished += tuple(f"{folder} (not begun)" for folder in _not_begun(root, found))
    aside = (
        *(f"{cell.path.name}: {cell.set_aside}" for cell in found if cell.set_aside is not None),
        *(f"{done[code].path.name}: {reason}" for code, reason in damaged.items()),
    )
    cells = [cell for code, cell in enumerate(done) if code not in damaged]
    repeated = sum(cell.done for cell in found) - len(done)
    if not cells:
        raise ValueError(_no_cells(root, unfinished, aside))
    if unfinished and warn:
        log.warning("%s left out: %s", counted(len(unfinished), "unfinished cell"), ", ".join(unfinished))
    if aside and warn:
        log.warning("%s set aside: %s", counted(len(aside), "damaged cell"), "; ".join(aside))
    if repeated:
        log.warning("%s found in more than one folder, counted once", counted(repeated, "cell"))
    ids = [cell.info["cell_id"] for cell in cells]
    return Records(
        cells=pd.DataFrame([_cell_row(cell) for cell in cells], columns=frame_columns("cells")),
        metrics=pd.DataFrame(
            [{"cell_id": cell.info["cell_id"], **row} for cell in cells for row in cell.metrics["metrics"]],
            columns=frame_columns("metrics"),
        ),
        **{name: _stack(name, ids, _kept(tables.pop(name), damaged)) for name in _STACKED},
        unfinished=unfinished,
        set_aside=aside,
    )


def _not_begun(root: Path, found: Sequence[CellRecord]) -> list[str]:
    """Folders that the latest sweeps of the studies at or below `root` set out to fill, and that are not there."""
    studies = dict.fromkeys(cell.path.parent for cell in found if cell.path != root)
    return [
        cell.folder
        for study in studies
        for cell in {cell.folder: cell for sweep in latest_sweeps(study) for cell in sweep.cells}.values()
        if not (study / cell.folder).exists()
    ]


def _cell_row(cell: CellRecord) -> dict[str, object]:
    info, metrics = cell.info, cell.metrics
    params = info.get("policy_params") or {}
    row = dict.fromkeys(frame_columns("cells")) | {name: info.get(name) for name in columns_in("cell.json")}
    row |= {name: metrics.get(name) for name in columns_in("metrics.json")}
    row["matched"] = json.dumps(metrics["matched"]) if "matched" in metrics else None
    row["policy_params"] = json.dumps(params, sort_keys=True)
    row |= _timed(cell)
    row["seconds"] = cell.status.get("seconds")
    row["path"] = str(cell.path)
    row["invalid"] = "; ".join(cell.status.get("invalid") or ())
    row["environment"] = json.dumps(fields_of(cell.provenance), sort_keys=True)
    return row


def _timed(cell: CellRecord) -> dict[str, object]:
    """What the cell's policy (or vanilla, in its own cell) had on when it was timed."""
    timing = cell.timing_info
    found = {}
    for column, name in (
        ("timed_active_experts", "active_experts"),
        ("prefill_active_experts", "prefill_active_experts"),
    ):
        own = timing.get(f"policy_{name}")
        found[column] = timing.get(f"vanilla_{name}") if own is None else own
    found |= hardware_numbers(timing) | {"vanilla_j_per_token": timing.get("vanilla_j_per_token")}
    found |= {"timed_context": timing.get("context"), "prefill_tokens": timing.get("prefill_tokens")}
    found |= {name: timing.get(name) for name in ("precision", "precision_reached")}
    return found | {"busy": is_busy(timing)}


def is_busy(timing: Mapping[str, Any]) -> bool | None:
    """Whether other threads and the model's wanted more than all CPUs when a cell was timed; None if not known."""
    others, cpus = timing.get("other_threads"), timing.get("cpus")
    return None if others is None or not cpus else others + min(timing["threads"], cpus) > cpus


_REPEATED = ("subtask", "finish_reason")
"""Columns of few names in many rows, read as categories."""


_STACKED = ("samples", "responses", "steps", "prefill", "timing", "breakdown", "fidelity")
"""Frames with rows of every cell."""
_NEEDED = ("samples", "responses", "steps")
"""Those that every cell has."""


def _tables_of(table: str, cells: Sequence[CellRecord]) -> dict[int, pa.Table | Damaged]:
    """The documented columns only, by place of the cell: a text that is not read takes neither time nor memory."""
    columns = [name for name in frame_columns(table) if name != "cell_id"]
    repeated = [name for name in _REPEATED if name in columns]
    more = ["filler"] if table == "responses" else []
    found: dict[int, pa.Table | Damaged] = {}
    for code, cell in enumerate(cells):
        try:
            path = cell.path / f"{table}.parquet"
            found[code] = _answered(read_rows(path, [*columns, *more], repeated))
            if table == "samples":
                _check_subtasks(path, found[code], cell)
        except Missing as error:
            if table in _NEEDED:
                found[code] = error
        except Damaged as error:
            found[code] = error
    return found


def _check_subtasks(path: Path, samples: pa.Table, cell: CellRecord) -> None:
    """Damaged where a score of metrics.json stands on no row."""
    held = set(pc.unique(samples["subtask"].cast(pa.string())).to_pylist())
    lacking = [row["subtask"] for row in cell.metrics["metrics"] if row["samples"] and row["subtask"] not in held]
    if lacking:
        raise Damaged(path, f"holds no row of {lacking[0]}, which metrics.json scores")


def _answered(table: pa.Table) -> pa.Table:
    """Without responses that only fill a lane, which nobody scores."""
    if "filler" not in table.column_names:
        return table
    return table.filter(pc.invert(pc.fill_null(table["filler"].cast(pa.bool_()), False))).drop_columns(["filler"])


def _kept(tables: Mapping[int, pa.Table], damaged: Collection[int]) -> dict[int, pa.Table]:
    """Of cells that are shown, by their place among these."""
    left_out = sorted(damaged)
    return {code - bisect(left_out, code): part for code, part in tables.items() if code not in damaged}


def _stack(table: str, ids: Sequence[str], tables: Mapping[int, pa.Table]) -> pd.DataFrame:
    """One table of every cell that has it; `cell_id` is categorical, which keeps millions of rows small."""
    if not tables:
        return pd.DataFrame({name: [] for name in frame_columns(table)})
    codes = np.repeat(list(tables), [part.num_rows for part in tables.values()])
    together = pa.concat_tables(tables.values(), promote_options="permissive").unify_dictionaries()
    stacked = together.combine_chunks().to_pandas()  # in thousands of parts, texts are slow to take from
    stacked.insert(0, "cell_id", pd.Categorical.from_codes(codes, categories=list(ids)))
    return stacked


def _state(cell: CellRecord) -> str:
    state = str(cell.status.get("state", "not started"))
    error = cell.status.get("error") or {}
    return f"{state}: {error['class']}" if error.get("class") else state


def _first(items: Sequence[str], apart: str, most: int = 3) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{apart.join(items[:most])}{more}"


def _no_cells(root: Path, unfinished: Sequence[str], aside: Sequence[str]) -> str:
    left = f"; unfinished: {_first(unfinished, ', ')}" if unfinished else ""
    damaged = f"; damaged: {_first(aside, '; ')}" if aside else ""
    return f"results folder {str(root)!r} holds no finished cell{left}{damaged}"
