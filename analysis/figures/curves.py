"""Lines with intervals, one panel a subtask: what the sensitivity figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures import looks, style

DIFFERENCE = "difference to vanilla (points)"
_PANEL_IN = 1.15


def curve(axes: Axes, points: pd.DataFrame, x: str, y: str, look: looks.Look) -> None:
    """A line through points in the order of `x`, with bars of their intervals; a flagged point is ringed."""
    ordered = points.sort_values(x)
    axes.plot(ordered[x], ordered[y], **look.line_kwargs(), zorder=3)
    known = ordered[ordered[f"{y}_low"].notna()]
    axes.vlines(known[x], known[f"{y}_low"], known[f"{y}_high"], color=look.color, linewidth=0.7, zorder=2)
    if "guard" in ordered:
        looks.ring(axes, ordered, x, y)


def curves(
    axes: Axes, points: pd.DataFrame, x: str, y: str, by: str, look: Mapping[str, looks.Look], spread: float = 0.0,
    *, octaves: bool = False,
) -> None:  # fmt: skip
    """One `curve` for each value of `by`. `spread`: how far apart along x they stand, so that none hides another; with
    `octaves` in factors of two, for an axis that is logarithmic."""
    for at, (name, one) in enumerate(look.items()):
        part = points[points[by] == name]
        aside = (at - (len(look) - 1) / 2) * spread
        curve(axes, part.assign(**{x: part[x] * 2**aside if octaves else part[x] + aside}), x, y, one)


def zero(axes: Axes) -> None:
    axes.axhline(0.0, color="#999999", linewidth=0.6, zorder=1)


def key(look: Mapping[str, looks.Look], points: pd.DataFrame) -> tuple[list[style.Handle], list[str]]:
    """Handles and labels of a legend, with that of the rings if one of `points` is flagged."""
    rings = looks.ring_entry(points)
    return [*(Line2D([], [], **one.line_kwargs()) for one in look.values()), *rings[0]], [*look, *rings[1]]


def panels(
    rows: Sequence[str], columns: int, legend_rows: int, *, sharex: bool = True, height_in: float = _PANEL_IN
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a row of panels for each of `rows`, which the first panel of each is titled with."""
    fig = style.figure(height_in * len(rows) + style.LEGEND_ROW_IN * legend_rows + 0.4)
    grid = fig.subplots(len(rows), columns, sharex="col" if sharex else False, squeeze=False)
    for name, line in zip(rows, grid, strict=True):
        line[0].set_title(name, loc="left")
        for axes in line:
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.margins(x=0.06, y=0.1)
    return fig, [list(line) for line in grid]


def ylabel(fig: Figure, text: str, legend_rows: int) -> None:
    """One label for all rows of panels, in the middle of them."""
    legend_in = style.LEGEND_ROW_IN * legend_rows
    middle = 1.0 - 0.5 * (fig.get_figheight() - legend_in) / fig.get_figheight()
    fig.supylabel(text, y=middle, fontsize=style.RC["axes.labelsize"])


def left_out(rows: pd.DataFrame, y: str = "difference") -> tuple[pd.DataFrame, list[str]]:
    """The rows that have a `y`, and a line that names the others."""
    lacking = rows[rows[y].isna()]
    if lacking.empty:
        return rows, []
    return rows[rows[y].notna()], [f"not drawn, no vanilla partner: {style.listed(lacking['series'])}"]


NUMBERS = ("subtask", "batch_size", "series", "policy", "policy_params", "phases", "layers", "guard", "verdict")


def numbers(points: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """What the CSV holds: who the points are, and each of `columns` with its interval where it has one."""
    found = [c for name in columns for c in (name, f"{name}_low", f"{name}_high") if c in points]
    return points[[*(c for c in NUMBERS if c in points), *found]]
