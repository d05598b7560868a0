"""How many experts a layer runs per decode step as the batch grows, for each policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from analysis import macro
from analysis.figures import looks, style
from analysis.labels import of_purpose
from analysis.study import Study

NAME = "active_vs_batch"


def expected_active(batch_sizes: ArrayLike, num_experts: int, top_k: int) -> NDArray[np.float64]:
    """Mean active experts of B independent tokens with uniform top-k routing: E (1 - (1 - K/E)^B)."""
    return num_experts * (1.0 - (1.0 - top_k / num_experts) ** np.asarray(batch_sizes, dtype=float))


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One line per policy setting, means over the subtasks that all settings share at that batch size; of subtasks that
    are not there at every batch size, those that are at most of them."""
    name, summary = f"{NAME}{suffix}", _comparable(study)
    known = summary[summary["active_experts"].notna()] if len(summary) else summary
    if known.empty:
        return style.skip(name, "no cell recorded active experts in decode")
    complete = known[known["subtasks"] == known["all_subtasks"]]
    lacking = list(dict.fromkeys(known.loc[known["subtasks"] < known["all_subtasks"], "series"]))
    if complete.empty:
        return style.skip(name, "no policy has finished all subtasks of a batch size")
    look = looks.looks(complete)
    handles, labels = looks.family_entries(complete, look)
    rings = looks.ring_entry(complete)
    handles, labels = handles + rings[0], labels + rings[1]
    sizes = complete[["num_experts", "top_k"]].dropna().drop_duplicates()
    fig = style.figure(2.1 + style.LEGEND_ROW_IN * (len(labels) + len(sizes)) + 0.25)
    axes = fig.subplots()
    batches = sorted(complete["batch_size"].unique())
    columns = ["series", "policy", "batch_size", "active_experts", "active_experts_low", "active_experts_high", "guard"]
    numbers = complete[columns].copy()
    for num_experts, top_k in sizes.itertuples(index=False):
        smooth = np.geomspace(batches[0], batches[-1], 100)
        axes.plot(smooth, expected_active(smooth, num_experts, top_k), color="#000000", linestyle="--", linewidth=0.7)
        handles.append(Line2D([], [], color="#000000", linestyle="--", linewidth=0.7))
        labels.append(f"uniform routing: E (1 − (1 − K/E)$^B$), E = {num_experts:g}, K = {top_k:g}")
        numbers["uniform_routing"] = expected_active(numbers["batch_size"], num_experts, top_k)
    for series, drawn in reversed(look.items()):  # vanilla last, on top of the control that it nearly coincides with
        line = complete[complete["series"] == series].sort_values("batch_size")
        axes.plot(line["batch_size"], line["active_experts"], **drawn.marker_kwargs() | {"linestyle": "-"})
        low, high = line["active_experts_low"], line["active_experts_high"]
        axes.vlines(line["batch_size"], low, high, color=drawn.color, linewidth=0.7, zorder=1.9)
    looks.ring(axes, complete, "batch_size", "active_experts")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size (rows of a decode step)")
    axes.set_ylabel("active experts (per layer and step)")
    style.legend(fig, handles, labels)
    left_out = [f"not drawn, not of all subtasks: {style.listed(lacking)}"] if lacking else []
    return style.save(fig, folder, name, numbers, left_out)


def _comparable(study: Study) -> pd.DataFrame:
    """Macro means over subtasks that do not change with the batch size, for a line through them to mean anything."""
    rows = study.rows[~of_purpose(study.rows["policy"], "probe")]
    if rows.empty:
        return rows
    batches = rows.groupby("subtask")["batch_size"].nunique()
    kept = rows[rows["subtask"].isin(batches.index[batches == batches.max()])]
    unchanged = len(kept) == len(study.rows)
    return study.summary if unchanged else macro.summary(study.records, kept)
