"""One page for all figures: exact column widths, vector, the same bytes for the same numbers, and what is missing
said on the figure."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict, cast

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.typing import FillStyleType
from tueplots import figsizes

from analysis.outputs import write_bytes, write_csv

log = logging.getLogger("analysis")

WIDTH_IN = 3.25
LEGEND_ROW_IN = 0.135
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, without yellow, which fades on white paper."""

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 7,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.4,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 0.9,
    "lines.markersize": 4.6,
    "lines.markeredgewidth": 0.8,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
    "svg.hashsalt": "lynx_exp",
    "figure.figsize": (WIDTH_IN, 2.2),
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}
"""Fonts are those that matplotlib brings along, so that every machine has them; type 42 embeds them as outlines that
can be searched and that conferences accept."""

_SERIF = {"font.family": "STIXGeneral", "mathtext.fontset": "stix", "font.size": 8, "legend.fontsize": 7.5}
_SERIF |= {"axes.labelsize": 8.5, "axes.titlesize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8}
_SIZES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "neurips": figsizes.neurips2024,
    "icml": figsizes.icml2024_half,
    "mlsys": figsizes.icml2024_half,  # mlsys2025.sty is made from icml's: 6.75 inches, 0.25 between two columns
    "iclr": figsizes.iclr2024,
    "colm": figsizes.colm2026,
    "tmlr": figsizes.tmlr2023,
    "aaai": figsizes.aaai2024_half,
}
PAPERS: dict[str, dict[str, Any]] = {
    name: _SERIF | {"figure.figsize": (size()["figure.figsize"][0], 2.2)} for name, size in _SIZES.items()
}
"""What to change of RC: the width of a column, from tueplots, and letters that go with Times (STIX, which matplotlib
brings along). Of tueplots' bundles no more: our heights depend on panels and legends, our fonts are everywhere."""

WARNINGS: ContextVar[tuple[str, ...]] = ContextVar("WARNINGS", default=())
"""What every figure must say (`analysis.soundness`)."""


ASKED: ContextVar[bool] = ContextVar("ASKED", default=False)
"""Whether the figure was asked for by name."""


PICTURES: ContextVar[bool] = ContextVar("PICTURES", default=False)
"""Whether only pictures are wanted, as the page does: fonts of a PDF take longer than all else."""


def width_in() -> float:
    """Of the column that is drawn for."""
    return float(matplotlib.rcParams["figure.figsize"][0])


def figure(height_in: float) -> Figure:
    """An empty figure, one column wide."""
    return Figure(figsize=(width_in(), height_in), layout="constrained")


Handle = Artist | tuple[Artist, ...]
"""What stands beside a line of a legend: an artist, or several side by side."""


class LineStyle(TypedDict, total=False):
    """Arguments of `Axes.plot` and `Line2D`, as matplotlib has them."""

    color: str
    marker: str
    markersize: float
    markerfacecolor: str
    markerfacecoloralt: str
    markeredgewidth: float
    fillstyle: FillStyleType
    linestyle: str
    linewidth: float
    zorder: float


def legend(fig: Figure, handles: Sequence[Handle], labels: Sequence[str], columns: int = 1) -> None:
    """One legend below all panels, where it can cover no point."""
    fig.legend(
        cast("Sequence[Artist]", handles),  # the handler_map takes tuples of them, too
        labels,
        loc="outside lower center",
        ncols=columns,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.4)},
        handlelength=2.6,
        labelspacing=0.35,
        borderaxespad=0.2,
    )


_NOTE_SIZE = 6
_LETTERS_AN_INCH = 20


def note(fig: Figure, lines: Iterable[str]) -> None:
    """Say on the figure what it leaves out, and what to mind; it grows by as much."""
    letters = int(_LETTERS_AN_INCH * width_in())
    text = [part for line in lines for part in textwrap.wrap(line, letters, subsequent_indent="  ")]
    if text:
        fig.set_figheight(fig.get_figheight() + len(text) * 1.25 * _NOTE_SIZE / 72)
        fig.suptitle("\n".join(text), fontsize=_NOTE_SIZE, style="italic", color="#555555", x=0.02, ha="left")


def listed(names: Iterable[str]) -> str:
    """The first two of them, each once, and how many more there are."""
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:2]) + (f" and {len(unique) - 2} more" if len(unique) > 2 else "")


def skip(name: str, reason: str) -> list[Path]:
    """Log why a figure is not drawn; returns no files."""
    log.warning("figure %s skipped: %s", name, reason)
    return []


def absent(name: str, cells: str) -> list[Path]:
    """No cell is there that the figure is about: worth a line only to who asked for it by name."""
    return skip(name, f"no cell {cells}") if ASKED.get() else []


def save(fig: Figure, folder: Path, name: str, numbers: pd.DataFrame, left_out: Iterable[str] = ()) -> list[Path]:
    """Write NAME.pdf, NAME.png (300 dpi) and NAME.csv, free of dates and program versions; where only PICTURES are
    wanted, the second alone.

    `left_out`: lines that stand on the figure, before those of WARNINGS.
    """
    note(fig, [*left_out, *WARNINGS.get()])
    pdf, png, csv = (folder / f"{name}.{ending}" for ending in ("pdf", "png", "csv"))
    dates = {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None}
    if PICTURES.get():
        write_bytes(png, _drawn(fig, "png", {"Software": None}))
        return [png]
    write_bytes(pdf, _drawn(fig, "pdf", dates))
    fig.set_layout_engine("none")  # the layout is settled: not computed again
    write_bytes(png, _drawn(fig, "png", {"Software": None}))
    write_csv(csv, numbers)
    return [pdf, png, csv]


def _drawn(fig: Figure, form: str, metadata: Mapping[str, str | None]) -> bytes:
    drawn = BytesIO()
    fig.savefig(drawn, format=form, metadata=metadata)
    return drawn.getvalue()
