"""What the command line calls: print the table of a results folder, draw its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from analysis import composition
from analysis import results_table as table
from analysis.conclusion import conclusions
from analysis.figures import Track
from analysis.layout import WIDTH, print_warnings, wrapped
from analysis.study import Study, study
from analysis.verdicts import MARGIN


def print_table(
    root: str | Path,
    console: Console | None = None,
    csv: str | Path | None = None,
    margin: float = MARGIN,
    *,
    by: table.By = "mean",
    policies: Sequence[str] = (),
    tasks: Sequence[str] = (),
    sort: str = "policy",
    legend: bool = False,
) -> Study:
    """Print what the finished cells below `root` come to: a line of conclusion and the macro means for each batch size,
    with `by` "task" or "all" every subtask; write the numbers to `csv` if given.

    `margin`: points that a difference is tested to be within. `policies`, `tasks`: only these. `sort`: one of
    `table.SORTS`. Raises ValueError if the folder holds no finished cell, or for a name that is not on record.
    Returns what was printed.
    """
    found = study(root, margin).only(policies, tasks)
    console = console or _console()
    print_warnings(found.warnings, console)
    for line in conclusions(found):
        console.print(wrapped(f"→ {line}", "bold"))
    console.print()
    table.print_rows(found.rows, found.summary, console, by=by, sort=sort)
    if legend and by == "mean":
        table.print_legend(found.rows, found.summary, console)
    table.print_mixes(composition.summary(found.lanes), console)
    if csv is not None:
        for file in table.write_csv(found.rows, found.summary, found.lanes, csv):
            console.print(f"wrote {file}", soft_wrap=True, markup=False)
    return found


def _console() -> Console:
    console = Console(emoji=False)
    return console if console.is_terminal else Console(emoji=False, width=WIDTH)


def write_figures(
    root: str | Path,
    out: str | Path | None = None,
    only: str | None = None,
    *,
    paper: str | None = None,
    margin: float = MARGIN,
    found: Study | None = None,
    track: Track = iter,
) -> list[Path]:
    """Draw the figures of all finished cells below `root`; returns the files written (PDF, PNG, CSV of each).

    `out` defaults to `ROOT/figures`; `only` names one of `analysis.figures.names()`; `paper` one of
    `analysis.figures.PAPERS`; `found`: the study of `root`, where it has been read already;
    `track` is given the names and shows how far it is. A figure that lacks its
    data is skipped with a logged reason. Raises ValueError for an unknown name or a folder without finished cells.
    """
    from analysis import figures

    if only is not None and only not in figures.names():
        raise ValueError(f"figure {only!r} is unknown; known: {', '.join(figures.names())}")
    if paper is not None and paper not in figures.PAPERS:
        raise ValueError(f"paper {paper!r} is unknown; known: {', '.join(figures.PAPERS)}")
    folder = Path(root) / "figures" if out is None else Path(out)
    return figures.draw(found or study(root, margin), folder, only=only, paper=paper, track=track)
