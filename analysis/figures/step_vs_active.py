"""Does a decode step get faster with fewer active experts on this machine? step times of all measured cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from scipy import stats

from analysis import guards
from analysis.figures import looks, style
from analysis.labels import of_purpose
from analysis.study import Study

NAME = "step_vs_active"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Least-squares line of a step (ms) over active experts."""

    intercept: float
    slope: float
    r_squared: float


def least_squares(active: pd.Series, step_ms: pd.Series) -> Fit | None:
    """The line through the points; None with fewer than three distinct abscissae."""
    if active.nunique() < 3:
        return None
    line = stats.linregress(active, step_ms)
    return Fit(intercept=float(line.intercept), slope=float(line.slope), r_squared=float(line.rvalue**2))


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One point per measured cell, one line per batch size; colour is the batch size, the marker the policy."""
    name = f"{NAME}{suffix}"
    points = _points(study.rows[~of_purpose(study.rows["policy"], "probe")])
    if points.empty:
        return style.skip(name, "no cell was timed with active experts on record (measure.latency=true records timing)")
    marker = looks.markers(points)
    fits, labels = {}, []
    handles: list[style.Handle] = []
    batches = sorted(points["batch_size"].unique())
    colors = {batch: style.PALETTE[index % len(style.PALETTE)] for index, batch in enumerate(batches)}
    for batch, part in points.groupby("batch_size", sort=True):
        sure = part[part["timing_final"].astype(bool)]
        fits[batch] = least_squares(sure["x"], sure["y"])
        handles.append(Line2D([], [], color=colors[batch], linewidth=1.2))
        labels.append(f"batch size {batch}: {equation(fits[batch])}")
    for policy in points["policy"].drop_duplicates():
        grey = looks.Look(color="#444444", marker=marker[policy])
        handles.append(Line2D([], [], **grey.marker_kwargs()))
        labels.append(policy)
    for more in (looks.unsure_entry(points), looks.ring_entry(points)):
        handles, labels = handles + more[0], labels + more[1]
    fig = style.figure(2.1 + style.LEGEND_ROW_IN * len(labels) + 0.25)
    axes = fig.subplots()
    looks.error_bars(axes, points, [colors[batch] for batch in points["batch_size"]])
    for point in points.to_dict("records"):
        color = colors[point["batch_size"]]
        drawn = looks.Look(color=color, marker=marker[point["policy"]])
        drawn = drawn if point["timing_final"] else drawn.faint()
        axes.plot([point["x"]], [point["y"]], **drawn.marker_kwargs() | {"markersize": 3.6}, alpha=0.75, zorder=3)
    looks.ring(axes, points, "x", "y")
    for batch, fit in fits.items():
        if fit is not None:
            ends = points.loc[points["batch_size"] == batch, "x"].agg(["min", "max"]).to_numpy()
            axes.plot(ends, fit.intercept + fit.slope * ends, color=colors[batch], zorder=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("active experts (per layer and step)")
    axes.set_ylabel("decode step (ms)")
    style.legend(fig, handles, labels)
    for column in ("intercept", "slope", "r_squared"):
        points[column] = [getattr(fits[batch], column, np.nan) for batch in points["batch_size"]]
    return style.save(fig, folder, name, points)


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per timed cell: x = active experts during the timed steps (else in the task), y = a step (ms); flagged if
    one of its subtasks is."""
    cells = rows.drop_duplicates("cell_id").set_index("cell_id")
    in_task = rows.groupby("cell_id")["active_experts"].mean()
    active = cells["timed_active_experts"].astype(float).fillna(in_task)
    keep = ["task", "batch_size", "series", "policy", "policy_params", "phases", "timing_final"]
    points = cells[keep].assign(x=active, x_low=np.nan, x_high=np.nan)
    points = points.assign(y=cells["step_ms"], y_low=cells["step_ms_low"], y_high=cells["step_ms_high"])
    points["guard"] = rows.groupby("cell_id")["guard"].agg(guards.together)
    return points.dropna(subset=["x", "y"]).reset_index()


def equation(fit: Fit | None) -> str:
    """As a legend shows it."""
    if fit is None:
        return "too few points for a line"
    sign = "+" if fit.slope >= 0 else "−"
    return f"{fit.intercept:.3g} ms {sign} {abs(fit.slope):.3g} ms per expert, R$^2$ = {fit.r_squared:.2f}"
