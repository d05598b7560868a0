"""Readers of cells: what analysis and trackers see. Torch-free, Hydra-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lynx_exp.store.files import read_json
from lynx_exp.store.identity import SCHEMA


def is_done(folder: Path) -> bool:
    """DONE is there, and so is every file that it names."""
    done = read_json(folder / "DONE")
    return isinstance(done, dict) and all((folder / name).is_file() for name in done.get("files", {}))


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One cell's folder. Tables are read when asked for; columns as in `lynx_exp.store.tables`."""

    path: Path
    info: dict[str, Any]
    """cell.json"""
    metrics: dict[str, Any] = field(repr=False)
    """metrics.json; empty while the cell is unfinished."""
    status: dict[str, Any] = field(repr=False)
    """status.json"""
    provenance: dict[str, Any] = field(repr=False)
    """provenance.json"""
    done: bool

    def responses(self) -> pa.Table:
        """One row a request."""
        return pq.read_table(self.path / "responses.parquet")

    def steps(self) -> pa.Table:
        """One row a (subtask, lane, decode step, layer)."""
        return pq.read_table(self.path / "steps.parquet")

    def samples(self) -> pa.Table:
        """One row a document."""
        return pq.read_table(self.path / "samples.parquet")

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
        return pq.read_table(path) if path.exists() else None


def read_cell(folder: Path) -> CellRecord:
    """The record in `folder`, finished or not. ValueError if there is none, or one of another version."""
    info = read_json(folder / "cell.json")
    if not isinstance(info, dict):
        raise ValueError(f"{folder}: holds no cell (no readable cell.json)")
    if info.get("schema") != SCHEMA:
        raise ValueError(
            f"{folder}: written in form {info.get('schema')} of records, and this lynx_exp reads form {SCHEMA}: read "
            "it with the version in its provenance.json, or run the sweep again with another results= or study_name="
        )
    parts = {name: read_json(folder / f"{name}.json") or {} for name in ("metrics", "status", "provenance")}
    return CellRecord(path=folder, info=info, done=is_done(folder), **parts)


def read_cells(root: Path | str) -> list[CellRecord]:
    """All cells below `root` (a cell, a study or anything above), in the order of their paths.

    Raises ValueError if `root` is not a folder, or holds records of another version. A folder whose cell.json is
    damaged is not a cell.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: not a folder; give a study (results/STUDY) or a folder above")
    folders = sorted(path.parent for path in root.rglob("cell.json"))
    return [read_cell(folder) for folder in folders if isinstance(read_json(folder / "cell.json"), dict)]
