"""Does a step get slower with each active expert? Decode and prefill latency against active experts (Lynx figure 2)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.lines import Line2D

from analysis import latency
from analysis.figures import looks, style
from analysis.figures.step_vs_active import equation, least_squares
from analysis.frame_rows import Row
from analysis.study import Study
from lynx_exp.store.step_times import step_ms_per_window

STEPS = {
    "decode": ("timed_active_experts", "", "decode step (ms)", "active experts (per layer and decode step)"),
    "prefill": (
        "prefill_active_experts",
        " prefill",
        "prefill (ms per lane)",
        "active experts (per layer and prefill)",
    ),
}


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One panel a phase, one colour a batch size, a point for each cell whose prefill was timed, with a fitted line."""
    cells = study.records.cells[study.records.cells["prefill_active_experts"].notna()]
    if cells.empty:
        return style.absent(f"fig2{suffix}", "timed its prefill (measure.prefill=true; +paper=fig2)")
    points = pd.DataFrame([point for row in cells.to_dict("records") for point in _points(row, study.records.timing)])
    batches = sorted(points["batch_size"].unique())
    colors = {batch: style.PALETTE[at % len(style.PALETTE)] for at, batch in enumerate(batches)}
    fig = style.figure(3.6 + style.LEGEND_ROW_IN * 2 * len(batches))
    handles: list[style.Handle] = []
    labels = []
    for axes, (phase, (_, _, ylabel, xlabel)) in zip(fig.subplots(2, 1), STEPS.items(), strict=True):
        axes.set_title(phase, loc="left")
        for batch in batches:
            part = points[(points["phase"] == phase) & (points["batch_size"] == batch)]
            fit = least_squares(part["active"], part["ms"])
            marker = looks.Look(color=colors[batch], marker="o" if phase == "decode" else "s")
            axes.plot(part["active"], part["ms"], **marker.marker_kwargs() | {"markersize": 3.6}, zorder=3)
            axes.vlines(part["active"], part["ms_low"], part["ms_high"], color=colors[batch], linewidth=0.7, zorder=2)
            if fit is not None:
                ends = part["active"].agg(["min", "max"]).to_numpy()
                axes.plot(ends, fit.intercept + fit.slope * ends, color=colors[batch], zorder=2)
            points.loc[part.index, ["intercept", "slope", "r_squared"]] = (
                (fit.intercept, fit.slope, fit.r_squared) if fit else (float("nan"),) * 3
            )
            handles.append(Line2D([], [], **marker.marker_kwargs() | {"linestyle": "-"}))
            labels.append(f"{phase}, batch {batch}: {equation(fit)}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    style.legend(fig, handles, labels)
    return style.save(fig, folder, f"fig2{suffix}", points)


def _points(row: Row, timing: pd.DataFrame) -> list[dict[str, object]]:
    """Of one cell: a point of each phase."""
    own = timing[timing["cell_id"] == row["cell_id"]]
    who = "vanilla" if row["policy"] == "vanilla" else "policy"
    points = []
    for phase, (active, name, _, _) in STEPS.items():
        steps = step_ms_per_window(own, f"{who}{name}")
        if len(steps):
            found = latency.mean_step(steps)
            names = ("task", "batch_size", "policy", "policy_label", "phases")
            kept = {column: row[column] for column in names}
            times = {"ms": found.value, "ms_low": found.low, "ms_high": found.high}
            points.append({**kept, "phase": phase, "active": row[active], **times})
    return points
