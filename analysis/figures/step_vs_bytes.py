"""How far is a decode step from the rate of memory? step times against the bytes model, with the ideal line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis import guards
from analysis.figures import looks, style
from analysis.labels import of_purpose
from analysis.study import Study

NAME = "step_vs_bytes"
_IDEAL: style.LineStyle = {"color": "#000000", "linestyle": "--", "linewidth": 0.7}
_HALF: style.LineStyle = {"color": "#777777", "linestyle": ":", "linewidth": 0.7}


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One point per timed cell: across, what its bytes take at the rate of a plain copy on its device; up, what its
    step took. Colour is the batch size, the marker the policy."""
    name = f"{NAME}{suffix}"
    points = _points(study.rows[~of_purpose(study.rows["policy"], "probe")])
    if points.empty:
        return style.absent(name, "has the bytes of a timed step on record (measure.latency=true records them)")
    marker = looks.markers(points)
    batches = sorted(points["batch_size"].unique())
    colors = {batch: style.PALETTE[index % len(style.PALETTE)] for index, batch in enumerate(batches)}
    handles: list[style.Handle] = [Line2D([], [], **_IDEAL), Line2D([], [], **_HALF)]
    labels = [f"every byte once, at the rate of a plain copy: {_rates(points['copy_gb_s'])} GB/s", "half that rate"]
    for batch, part in points.groupby("batch_size", sort=True):
        handles.append(Line2D([], [], color=colors[batch], linewidth=3))
        labels.append(f"batch size {batch}: {_shares(part['s_mbu'])} of that rate")
    for policy in points["policy"].drop_duplicates():
        handles.append(Line2D([], [], **looks.Look(color="#444444", marker=marker[policy]).marker_kwargs()))
        labels.append(policy)
    for more in (looks.unsure_entry(points), looks.ring_entry(points)):
        handles, labels = handles + more[0], labels + more[1]
    fig = style.figure(2.1 + style.LEGEND_ROW_IN * len(labels) + 0.25)
    axes = fig.subplots()
    ends = np.array([0.0, 1.08 * points["x"].max()])
    axes.plot(ends, ends, **_IDEAL, zorder=1.5)
    axes.plot(ends, 2 * ends, **_HALF, zorder=1.5)
    looks.error_bars(axes, points, [colors[batch] for batch in points["batch_size"]])
    for point in points.to_dict("records"):
        drawn = looks.Look(color=colors[point["batch_size"]], marker=marker[point["policy"]])
        drawn = drawn if point["timing_final"] else drawn.faint()
        axes.plot([point["x"]], [point["y"]], **drawn.marker_kwargs() | {"markersize": 3.6}, alpha=0.75, zorder=3)
    looks.ring(axes, points, "x", "y")
    axes.set_xlim(0, ends[1])
    axes.set_ylim(0, 1.08 * max(points["y"].max(), points["y_high"].max(), ends[1]))
    axes.set_xlabel("bytes of the step at the rate of a copy (ms)")
    axes.set_ylabel("decode step (ms)")
    style.legend(fig, handles, labels)
    return style.save(fig, folder, name, points)


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per timed cell whose bytes are known: x = the step that its bytes allow, y = its step (ms); flagged if
    one of its subtasks is."""
    cells = rows.drop_duplicates("cell_id").set_index("cell_id")
    numbers = cells[["step_gb", "gb_s", "s_mbu", "copy_gb_s"]].astype(float)
    keep = ["task", "batch_size", "series", "policy", "policy_params", "phases", "timing_final"]
    rate = numbers["gb_s"] / numbers["s_mbu"]  # of all devices that read at once
    points = cells[keep].assign(x=1000 * numbers["step_gb"] / rate, x_low=np.nan, x_high=np.nan)
    points = points.assign(y=cells["step_ms"], y_low=cells["step_ms_low"], y_high=cells["step_ms_high"], **numbers)
    points["guard"] = rows.groupby("cell_id")["guard"].agg(guards.together)
    return points.dropna(subset=["x", "y"]).reset_index()


def _rates(rates: pd.Series) -> str:
    low, high = (f"{value:.3g}" for value in (rates.min(), rates.max()))
    return low if low == high else f"{low} to {high}"


def _shares(shares: pd.Series) -> str:
    low, high = (f"{100 * value:.0f}" for value in (shares.min(), shares.max()))
    return f"{low} %" if low == high else f"{low} to {high} %"
