"""What the command line calls: print the table of a results folder, draw its figures."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from analysis import composition, table
from analysis.compare import results
from analysis.load import load
from analysis.macro import summary


def print_table(root: str | Path, console: Console | None = None, csv: str | Path | None = None) -> None:
    """Print every finished cell below `root` by task and batch size, and write the numbers to `csv` if given.

    Raises ValueError if the folder holds no finished cell.
    """
    records = load(root)
    rows = results(records)
    averaged, lanes = summary(records, rows), composition.lanes(records, rows)
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=table.WIDTH)
    table.print_rows(rows, averaged, console)
    table.print_mixes(composition.summary(lanes), console)
    if csv is not None:
        for file in table.write_csv(rows, averaged, lanes, csv):
            console.print(f"wrote {file}", soft_wrap=True)


def write_figures(root: str | Path, out: str | Path | None = None, only: str | None = None) -> list[Path]:
    """Draw the figures of all finished cells below `root`; returns the files written (PDF, PNG, CSV of each).

    `out` defaults to `ROOT/figures`; `only` names one of `analysis.figures.NAMES`. A figure that lacks its data is
    skipped with a logged reason. Raises ValueError for an unknown name or a folder without finished cells.
    """
    from analysis import figures

    if only is not None and only not in figures.NAMES:
        raise ValueError(f"figure {only!r} is unknown; known: {', '.join(figures.NAMES)}")
    records = load(root)
    rows = results(records)
    folder = Path(root) / "figures" if out is None else Path(out)
    return figures.draw(rows, summary(records, rows), composition.lanes(records, rows), folder, only=only)
