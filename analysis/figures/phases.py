"""Decode against prefill: what the same disturbance of one phase at a time does, against how strong it is in three
units: experts kept, the share of assignments changed, and the share of the router's top-k mass that is lost."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from analysis.asymmetry import PHASES, UNITS, asymmetries, disturbances
from analysis.figures import looks, style
from analysis.outputs import write_csv
from analysis.study import Study

NAME = "phases"
_QUANTITIES = {"kl": "KL from vanilla\n(millinats per token)", "difference": "difference to vanilla\n(points)"}


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """A row of panels for divergence and one for accuracy, a column for each unit of strength; one line per disturbance
    and phase, means over the subtasks. One figure per batch size; NAME_ratio.csv has prefill over decode at equal
    strength."""
    points = disturbances(study)
    if points.empty:
        return style.absent(f"{NAME}{suffix}", "of one policy in phases=decode and in phases=prefill (+study=phases)")
    ratios = asymmetries(study)
    sizes = sorted(points["batch_size"].unique())
    written: list[Path] = []
    for batch in sizes:
        name = f"{NAME}{suffix}" + ("" if len(sizes) == 1 else f"_b{batch}")
        written += _draw(points[points["batch_size"] == batch], ratios[ratios["batch_size"] == batch], folder, name)
    return written


def _draw(points: pd.DataFrame, ratios: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    names = sorted(points["disturbance"].unique())
    look = looks.distinct(names)
    fig = style.figure(2.8 + style.LEGEND_ROW_IN * (len(names) + 1))
    grid = fig.subplots(len(_QUANTITIES), len(UNITS), sharex="col", sharey="row")
    for (quantity, label), line in zip(_QUANTITIES.items(), grid, strict=True):
        for unit, axes in zip(UNITS, line, strict=True):
            for disturbance in names:
                for phase in PHASES:
                    part = points[(points["disturbance"] == disturbance) & (points["phases"] == phase)]
                    _curve(axes, part, unit, quantity, look[disturbance], filled=phase == "decode")
        line[0].set_ylabel(label)
    for (unit, text), axes in zip(UNITS.items(), grid[-1], strict=True):
        axes.set_xlabel(text)
        axes.set_xscale("log")
        kept = sorted(points["experts"].dropna().unique())
        axes.xaxis.set_major_locator(FixedLocator(kept) if unit == "experts" else LogLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    grid[0][0].set_yscale("log")
    grid[1][0].set_yscale("symlog", linthresh=5, linscale=1.0)
    grid[1][0].set_yticks([0, -2, -5, -10, -20, -50], ["0", "−2", "−5", "−10", "−20", "−50"])
    grid[1][0].set_ylim(min(float(points["difference"].min()) * 1.3, -2.0), 3.0)
    plain: style.LineStyle = {"color": "#444444", "marker": "o"}
    handles: list[style.Handle] = [Line2D([], [], **look[each].marker_kwargs()) for each in names]
    handles.append(Line2D([], [], **plain | {"linestyle": "-"}))
    handles.append(Line2D([], [], **plain | {"linestyle": "--", "markerfacecolor": "white"}))
    style.legend(fig, handles, [*names, "in decode", "in prefill"], columns=2)
    columns = ["disturbance", "phases", "policy_params"]
    for quantity in (*UNITS, *_QUANTITIES):
        columns += [c for c in (quantity, f"{quantity}_low", f"{quantity}_high") if c in points]
    # the intervals of `changed` in the summary are those of decode, and shares
    numbers = points[[c for c in columns if c not in ("changed_low", "changed_high")]]
    written = style.save(fig, folder, name, numbers)
    if style.PICTURES.get():
        return written
    table = folder / f"{name}_ratio.csv"
    write_csv(table, ratios)
    return [*written, table]


def _curve(axes: Axes, part: pd.DataFrame, unit: str, quantity: str, look: looks.Look, *, filled: bool) -> None:
    ordered = part.sort_values(unit)
    kwargs = look.marker_kwargs() | {"linestyle": "-" if filled else "--", "markersize": 3.4}
    if not filled:
        kwargs["markerfacecolor"] = "white"
    axes.plot(ordered[unit], ordered[quantity], **kwargs, zorder=3)
    low, high = ordered[f"{quantity}_low"], ordered[f"{quantity}_high"]
    if quantity == "kl":
        low = low.clip(lower=ordered["kl"] / 10)  # an interval that reaches 0 has no end on a logarithmic axis
    axes.vlines(ordered[unit], low, high, color=look.color, linewidth=0.6, zorder=2)
