"""What a whole study shows: the rows of its table, the means over subtasks, and the figures that were drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

Table = tuple[list[str], list[list[object]]]
"""Columns, rows."""


def tables_of(study: Path) -> dict[str, Table]:
    """`results`: the numbers of `lynx-results table`; `means`: over subtasks."""
    from analysis.study import study as read

    found = read(study)
    return {name: _plain(frame) for name, frame in (("results", found.rows), ("means", found.summary)) if len(frame)}


def figures_of(study: Path) -> list[Path]:
    """Figures of the study, each as PDF, PNG and CSV; empty if none was drawn."""
    return sorted(path for path in (study / "figures").glob("*") if path.suffix in (".pdf", ".png", ".csv"))


def _plain(frame: DataFrame) -> Table:
    """Without NaN, which JSON does not know."""
    columns = [str(name) for name in frame.columns]
    rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return columns, rows
