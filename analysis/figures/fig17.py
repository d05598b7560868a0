"""Decode speed-up against batch size (Lynx figure 17)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.ticker import FixedLocator, NullLocator

from analysis.figures import curves, looks, style
from analysis.labels import of_purpose
from analysis.study import Study


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One panel a task, one line for each policy setting that was timed at two batch sizes or more."""
    rows = study.rows
    known = rows[
        rows["speedup"].notna() & ~of_purpose(rows["policy"], "probe", "baseline") & (rows["phases"] == "decode")
    ]
    points = known.drop_duplicates(["task", "series", "batch_size"])
    points = points[points.groupby(["task", "series"])["batch_size"].transform("nunique") > 1]
    if points.empty:
        return style.absent(f"fig17{suffix}", "of a policy was timed at several batch sizes (+paper=fig17)")
    look = looks.looks(points)
    handles, labels = looks.family_entries(points, look)
    for more in (looks.unsure_entry(points), looks.ring_entry(points)):
        handles, labels = handles + more[0], labels + more[1]
    tasks = sorted(points["task"].unique())
    fig, grid = curves.panels(tasks, 1, len(labels), sharex=True, height_in=1.5)
    batches = sorted(points["batch_size"].unique())
    for task, (axes,) in zip(tasks, grid, strict=True):
        axes.axhline(1.0, color="#999999", linewidth=0.6, zorder=1)
        curves.curves(axes, points[points["task"] == task], "batch_size", "speedup", "series", look)
        for point in points[(points["task"] == task) & ~points["timing_final"].astype(bool)].to_dict("records"):
            pale = look[point["series"]].faint().marker_kwargs()
            axes.plot([point["batch_size"]], [point["speedup"]], **pale, zorder=4)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(batches))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(batches, [str(batch) for batch in batches])
    grid[-1][0].set_xlabel("batch size (rows of a decode step)")
    curves.ylabel(fig, "decode speed-up (× vanilla)", len(labels))
    style.legend(fig, handles, labels)
    numbers = curves.numbers(points, "speedup", "step_ms", "active_experts")
    numbers.insert(0, "task", points["task"])
    numbers["timing_final"] = points["timing_final"]
    return style.save(fig, folder, f"fig17{suffix}", numbers)
