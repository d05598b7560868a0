"""Readers of cells: what analysis and trackers see. Torch-free, Hydra-free."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from lynx_exp.store.done import DONE, check_sealed, is_done, read_done
from lynx_exp.store.file_forms import CELL, FINISHED_CELL
from lynx_exp.store.file_types import CellInfo, CellStatus
from lynx_exp.store.find import find_any_cells
from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.reading import Damaged, Missing, parse, read_bytes, read_rows, read_value

__all__ = ["CellRecord", "is_done", "read_cell", "read_cells"]


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One cell's folder. Tables are read when asked for; columns as in `lynx_exp.store.tables`."""

    path: Path
    info: CellInfo
    """cell.json"""
    metrics: dict[str, Any] = field(repr=False)
    """metrics.json; empty while the cell is unfinished."""
    status: CellStatus = field(repr=False)
    """status.json"""
    provenance: dict[str, Any] = field(repr=False)
    """provenance.json"""
    timing_info: dict[str, Any] = field(default_factory=dict, repr=False)
    """timing.json; empty if the cell measured no latency."""
    done: bool
    """Finished, whole, and of the form that this version reads."""
    damage: str | None = None
    """The file that is not what the store writes, and why: of a cell that is set aside."""
    form: str | None = None
    """Why the cell cannot be read by this version."""

    @property
    def set_aside(self) -> str | None:
        """Why the cell is not shown although something is there: one line. None: it is done, or simply not finished."""
        return self.damage or self.form

    def responses(self) -> pa.Table:
        """One row a request."""
        return read_rows(self.path / "responses.parquet")

    def steps(self) -> pa.Table:
        """One row a (subtask, lane, decode step, layer)."""
        return read_rows(self.path / "steps.parquet")

    def samples(self) -> pa.Table:
        """One row a document."""
        return read_rows(self.path / "samples.parquet")

    def timing(self) -> pa.Table | None:
        """One row a (name, repeat, step); None if the cell measured no latency."""
        return self._optional("timing")

    def fidelity(self) -> pa.Table | None:
        """None if the cell did not compare distributions."""
        return self._optional("fidelity")

    def prefill(self) -> pa.Table | None:
        """One row a (subtask, lane, layer); None if no policy acted on prompts."""
        return self._optional("prefill")

    def breakdown(self) -> pa.Table | None:
        """One row a (name, repeat, section); None if the cell timed no sections."""
        return self._optional("breakdown")

    def tokens(self) -> pa.Table | None:
        """One row a (subtask, request, fed token, layer); None if the cell did not write them."""
        return self._optional("tokens")

    def _optional(self, table: str) -> pa.Table | None:
        path = self.path / f"{table}.parquet"
        return read_rows(path) if path.exists() else None


def read_cell(folder: Path, *, allow_changed: Collection[str] = ()) -> CellRecord:
    """The record in `folder`, finished or not. ValueError if there is none, or one that is damaged, or of another form.

    `allow_changed`: names of files that may be others than DONE names."""
    record = _read(folder, allow_changed)
    if record.set_aside is not None:
        raise ValueError(f"{folder}: {record.set_aside}")
    if not record.info:
        raise ValueError(f"{folder}: holds no cell (no cell.json)")
    return record


def read_cells(root: Path | str, *, allow_changed: Collection[str] = ()) -> list[CellRecord]:
    """All cells at or below `root` (a cell, a study or anything above), in the order of their paths.

    A cell that is damaged, or of another form, is there too: not done, and with what there is to say in `aside`.
    Raises ValueError if `root` is not a folder.
    """
    return [_read(folder, allow_changed) for folder in find_any_cells(Path(root))[0]]


def _read(folder: Path, allow_changed: Collection[str]) -> CellRecord:
    info: CellInfo = {}
    parts: dict[str, dict[str, Any]] = {"metrics": {}, "status": {}, "provenance": {}, "timing_info": {}}
    found: list[str] = []
    form = None
    finished = (folder / DONE).exists()
    try:
        info = _info(folder, finished)
        form = _other_form(info)
        # another form is refused as it is: its hashes would be of files that this version does not know
        if finished and form is None:
            check_sealed(folder, read_done(folder), allow_changed)
    except Damaged as error:
        found.append(str(error))
    for part, file in _FILES.items() if form is None else ():
        try:
            parts[part] = read_value(folder / file)
        except Missing as error:
            # an unfinished cell may lack any of them; of a finished one the rest is told by DONE
            found += [str(error)] if finished and part == "metrics" else []
        except Damaged as error:
            found.append(str(error))
    # what is damaged is no result, whatever DONE says: it is shown as set aside, never averaged
    done = finished and not form and not found
    return CellRecord(
        path=folder,
        done=done,
        damage=found[0] if found else None,
        form=form,
        info=info,
        metrics=parts["metrics"],
        status=cast(CellStatus, parts["status"]),
        provenance=parts["provenance"],
        timing_info=parts["timing_info"],
    )


_FILES = {
    "metrics": "metrics.json",
    "status": "status.json",
    "provenance": "provenance.json",
    "timing_info": "timing.json",
}


def _info(folder: Path, finished: bool) -> CellInfo:
    """cell.json; empty where a cell has only begun."""
    path = folder / "cell.json"
    try:
        data = read_bytes(path)
    except Missing:
        if finished:
            raise
        return {}
    info = parse(path, data, CELL)
    whole = finished and info["schema"] == SCHEMA
    return cast(CellInfo, parse(path, data, FINISHED_CELL) if whole else info)


def _other_form(info: CellInfo) -> str | None:
    if not info or info["schema"] == SCHEMA:
        return None
    return (
        f"written in form {info['schema']} of records, and this lynx_exp reads form {SCHEMA}: read it with the version "
        "in its provenance.json, or run the sweep again with another results= or study_name="
    )
