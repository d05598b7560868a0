"""What became of the cells of a run, and what is done with them at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from lynx_exp.launch.cell import Cell
from lynx_exp.launch.waiting import bar


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one config."""

    state: Literal["done", "skipped", "failed", "planned"]
    folder: Path
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Outcomes in the order of the configs; configs that came to the same cell share one."""

    outcomes: list[Outcome]

    @property
    def failed(self) -> int:
        return len({outcome.folder for outcome in self.outcomes if outcome.state == "failed"})


def print_outcomes(report: Report, cells: Sequence[Cell], console: Console) -> None:
    states = {outcome.folder: outcome.state for outcome in report.outcomes}
    counts = ", ".join(f"{list(states.values()).count(state)} {state}" for state in ("done", "skipped", "failed"))
    where = ", ".join(str(study) for study in dict.fromkeys(cell.study for cell in cells))
    console.print(f"{len(states)} cells: {counts}; in {where}", markup=False, highlight=False, soft_wrap=True)
    for folder, outcome in {
        outcome.folder: outcome for outcome in report.outcomes if outcome.state == "failed"
    }.items():
        console.print(f"failed: {folder}: {outcome.error}", markup=False, highlight=False, soft_wrap=True)


def run_then(cells: Sequence[Cell], console: Console) -> None:
    """Tables and figures of every study, as its configs ask. What goes wrong here is said, and costs no cell."""
    wanted = dict.fromkeys((cell.study, what) for cell in cells for what in cell.config.then)
    for study, what in wanted:
        try:
            import analysis

            if what == "table":
                analysis.print_table(study, console=console if console.is_terminal else None)
            else:
                files = analysis.write_figures(study, track=bar)
                console.print("figures:", *map(str, files), sep="\n  ", markup=False, highlight=False, soft_wrap=True)
        except Exception as error:
            print(f"lynx-exp: warning: {what} of {study}: {type(error).__name__}: {error}", file=sys.stderr)
