"""Reading results: records -> tables, statistics and paper figures.

`load` gives the frames of `analysis.schema`, `print_table` the table of a results folder, `write_figures` its figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.load import Records, load

if TYPE_CHECKING:
    from analysis.commands import print_table, write_figures

__all__ = ["Records", "load", "print_table", "write_figures"]


def __getattr__(name: str) -> object:
    """Scipy, sacrebleu and rich are imported when a table or figure is asked for, not before."""
    if name in ("print_table", "write_figures"):
        from analysis import commands as report

        return getattr(report, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
