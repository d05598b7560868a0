"""Do lanes that mix tasks activate more experts than lanes of one task?"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis import composition
from analysis.figures import looks, style
from analysis.labels import of_purpose
from analysis.study import Study

NAME = "mixing"
_MOST = 4
"""Batch sizes of one file, one panel each."""
_SPREAD, _SPREAD_OF_ALL = 0.04, 0.15
"""Effective tasks between one policy's points and the next one's, and at most between the first's and the last's, so
that their intervals stand side by side."""


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """Active experts against the effective number of tasks in a lane, from `composition.lanes`.

    Small points are lanes, large ones their means with 95 % intervals; a line joins separate and shuffled lanes of the
    same requests. One colour per policy setting; one file per mix.
    """
    lanes = study.lanes
    known = lanes[lanes["active_experts"].notna()] if len(lanes) else lanes
    if known.empty:
        return style.skip(f"{NAME}{suffix}", "no cell of a mix (task.weights) recorded active experts")
    if set(known["mixing"]) != {composition.MIXED, composition.CONTROL}:
        reason = f"all mixes are {known['mixing'].iloc[0]}; task.mixing=shuffled,separate runs what is compared"
        return style.skip(f"{NAME}{suffix}", reason)
    written = []
    tasks = sorted(known["task"].unique())
    for task in tasks:
        part = known[known["task"] == task]
        batches = sorted(part["batch_size"].unique())
        for start in range(0, len(batches), _MOST):
            shown = batches[start : start + _MOST]
            ending = f"_{task}" if len(tasks) > 1 else ""
            ending += "_b" + "-".join(map(str, shown)) if len(batches) > _MOST else ""
            written += _draw(part[part["batch_size"].isin(shown)], folder, f"{NAME}{ending}{suffix}")
    return written


def _draw(lanes: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    means = composition.summary(lanes)
    look = _looks(means)
    shifts = {series: number * min(_SPREAD, _SPREAD_OF_ALL / len(look)) for number, series in enumerate(look)}
    means["x"] = means["effective_tasks"] + means["series"].map(shifts)
    handles: list[style.Handle] = [Line2D([], [], **one.marker_kwargs()) for one in look.values()]
    plain: style.LineStyle = {"color": "#444444", "marker": "o", "linestyle": "none"}
    handles.append(Line2D([], [], **plain))
    handles.append(Line2D([], [], **plain | {"markerfacecolor": "white"}))
    rings = looks.ring_entry(means)
    labels = [*look, "filled: shuffled lanes, mean and 95 % interval", "open: separate lanes of the same requests"]
    handles, labels = handles + rings[0], labels + rings[1]
    batches = sorted(lanes["batch_size"].unique())
    legend_in = style.LEGEND_ROW_IN * len(labels)
    fig = style.figure(1.7 * len(batches) + legend_in + 0.35)
    grid = fig.subplots(len(batches), 1, sharex=True, squeeze=False)[:, 0]
    for axes, batch in zip(grid, batches, strict=True):
        axes.set_title(f"batch size {batch}", loc="left")
        _panel(axes, lanes[lanes["batch_size"] == batch], means[means["batch_size"] == batch], look, shifts)
    grid[-1].set_xlabel("tasks in a lane (effective number)")
    middle = 1.0 - 0.5 * (fig.get_figheight() - legend_in) / fig.get_figheight()
    fig.supylabel("active experts (per layer and step)", y=middle, fontsize=style.RC["axes.labelsize"])
    style.legend(fig, handles, labels)
    numbers = lanes.drop(columns=["policy_params", "setting"])
    return style.save(fig, folder, name, numbers)


def _looks(means: pd.DataFrame) -> dict[str, looks.Look]:
    """A colour a setting, since here the fill tells the mixing; vanilla, its control and all markers as elsewhere."""
    usual = {series: replace(one, fill="full") for series, one in looks.looks(means).items()}
    controls = set(means.loc[of_purpose(means["policy"], "baseline", "control"), "series"])
    colors = cycle(style.PALETTE[:-1])
    return {name: one if name in controls else replace(one, color=next(colors)) for name, one in usual.items()}


def _panel(
    axes: Axes, lanes: pd.DataFrame, means: pd.DataFrame, look: dict[str, looks.Look], shifts: dict[str, float]
) -> None:
    for series, drawn in reversed(look.items()):  # vanilla last, on top of its control
        own, mean = lanes[lanes["series"] == series], means[means["series"] == series].sort_values("mixing")
        faint, shift = drawn.faint().color, shifts[series]
        dots: style.LineStyle = {"marker": ".", "linestyle": "none", "markersize": 2.5, "color": faint, "zorder": 2}
        axes.plot(own["effective_tasks"] + shift, own["active_experts"], **dots)
        axes.plot(mean["x"], mean["active_experts"], color=drawn.color, linewidth=0.7, zorder=3)
        axes.vlines(mean["x"], mean["active_experts_low"], mean["active_experts_high"], color=drawn.color, zorder=3)
        for point in mean.to_dict("records"):
            face: style.LineStyle = {} if point["mixing"] == composition.MIXED else {"markerfacecolor": "white"}
            axes.plot([point["x"]], [point["active_experts"]], **drawn.marker_kwargs() | face, zorder=4)
    looks.ring(axes, means, "x", "active_experts")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(0.08)
