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
from lynx_exp.terminal import Terminal


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
    """Print what the finished cells below a folder come to.

    Args:
        root: A study's folder, or any folder above.
        console: Where to print; None for standard output.
        csv: Also write the numbers to this file.
        margin: Points that a difference is tested to be within.
        by: "mean" prints the conclusion and macro means of each batch size, "task" every subtask, "all" both.
        policies: Only these, by name or label, and vanilla. Empty for all.
        tasks: Only these tasks or subtasks. Empty for all.
        sort: One of `results_table.SORTS`.
        legend: Also say what each column means.

    Returns:
        What was printed.

    Raises:
        ValueError: The folder holds no finished cell, or a name is not on record.
    """
    found = study(root, margin).only(policies, tasks)
    console = console or _console()
    print_warnings(found.warnings, console)
    for line in conclusions(found):
        console.print(wrapped(f"→ {line}", "bold"))
    console.print()
    table.print_rows(found.rows, found.summary, console, by=by, sort=sort)
    if legend and by == "mean":
        table.explain(found.rows, found.summary, console)
    table.print_mixes(composition.summary(found.lanes), console)
    if csv is not None:
        for file in table.write_csv(found.rows, found.summary, found.lanes, csv):
            console.print(f"wrote {file}", soft_wrap=True, markup=False)
    return found


def _console() -> Console:
    console = Terminal(emoji=False)
    return console if console.is_terminal else Terminal(emoji=False, width=WIDTH)


def write_figures(
    root: str | Path,
    out: str | Path | None = None,
    only: str | None = None,
    *,
    paper: str | None = None,
    margin: float = MARGIN,
    loaded: Study | None = None,
    track: Track = iter,
) -> list[Path]:
    """Draw the figures of all finished cells below a folder; one that lacks its data is skipped, with a logged reason.

    Args:
        root: A study's folder, or any folder above.
        out: Where files go; None for ROOT/figures.
        only: One of `analysis.figures.names()`; None for all.
        paper: One of `analysis.figures.PAPERS`, for its column width and letters; None for this project's own.
        margin: Points that a difference is tested to be within.
        loaded: The study of `root`, where it has been read already.
        track: Is given the names of figures, and shows how far it is.

    Returns:
        The files written: PDF, PNG and CSV of each figure.

    Raises:
        ValueError: An unknown name, or a folder without finished cells.
    """
    from analysis import figures

    if only is not None and only not in figures.names():
        raise ValueError(f"figure {only!r} is unknown; known: {', '.join(figures.names())}")
    if paper is not None and paper not in figures.PAPERS:
        raise ValueError(f"paper {paper!r} is unknown; known: {', '.join(figures.PAPERS)}")
    folder = Path(root) / "figures" if out is None else Path(out)
    return figures.draw(loaded or study(root, margin), folder, only=only, paper=paper, track=track)
