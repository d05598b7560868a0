"""Where a decode step's time goes, at each length of context (Lynx figure 18)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from analysis import latency
from analysis.figures import style
from analysis.frame_rows import Row
from analysis.study import Study

SECTIONS = ("attention", "router", "policy", "experts", "rest")
_HATCHES = ("", "//", "xx", "", "..")


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One panel a batch size and context, one bar a policy setting: medians over repeats of each section's time, with
    the share of the policy's own code."""
    cells = study.records.cells
    labels = {row["policy_label"]: row["series"] for row in study.rows.to_dict("records")}
    parts = study.records.breakdown
    if parts.empty:
        return style.absent(f"fig18{suffix}", "timed the sections of a step (measure.breakdown=true; +paper=fig18)")
    points = pd.DataFrame(
        [
            {
                "cell_id": cell["cell_id"],
                "task": cell["task"],
                "batch_size": cell["batch_size"],
                "context": cell["timed_context"],
                "policy": cell["policy"],
                "series": labels.get(cell["policy_label"], cell["policy_label"]).partition(" (context")[0],
                **_medians(_own(parts, cells, cell)),
            }
            for cell in cells[cells["cell_id"].isin(parts["cell_id"].unique())].to_dict("records")
        ]
    ).sort_values(["batch_size", "context"], kind="stable")
    groups = list(points.groupby(["batch_size", "context"], sort=True, dropna=False))
    fig = style.figure(sum(0.22 * (len(part) + 1) + 0.4 for _, part in groups) + 0.9)
    heights = [len(part) + 1 for _, part in groups]
    grid = fig.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, ((batch, context), part) in zip(grid, groups, strict=True):
        length = "" if pd.isna(context) else f", context of {context:.0f} tokens"
        axes.set_title(f"batch size {batch}{length}", loc="left")
        places, start = np.arange(len(part))[::-1], np.zeros(len(part))
        for at, section in enumerate(SECTIONS):
            look = {"color": style.PALETTE[at], "hatch": _HATCHES[at], "edgecolor": "white", "linewidth": 0.3}
            axes.barh(places, part[f"{section}_ms"], left=start, height=0.7, zorder=2, **look)
            start = start + part[f"{section}_ms"].to_numpy()
        for place, end, row in zip(places, start, part.to_dict("records"), strict=True):
            if row["policy"] != "vanilla":
                axes.text(end, place, f"  policy {100 * row['policy_ms'] / end:.1f} %", va="center", fontsize=6)
        axes.set_yticks(places, part["series"], fontsize=6.5)
        axes.grid(axis="y", visible=False)
    grid[-1].set_xlim(0, 1.25 * points[[f"{section}_ms" for section in SECTIONS]].sum(axis=1).max())
    grid[-1].set_xlabel("time of a decode step (ms)")
    grid[len(grid) // 2].set_ylabel("policy (setting)")
    handles = [Patch(facecolor=style.PALETTE[at], hatch=_HATCHES[at], edgecolor="white") for at in range(len(SECTIONS))]
    style.legend(fig, handles, SECTIONS, columns=5 if style.width_in() > 4 else 3)
    return style.save(fig, folder, f"fig18{suffix}", points)


def _own(parts: pd.DataFrame, cells: pd.DataFrame, cell: Row) -> pd.DataFrame:
    """What was timed of the cell's policy. Vanilla is timed in turns with every policy: all of those turns are its."""
    if cell["policy"] != "vanilla":
        return parts[(parts["cell_id"] == cell["cell_id"]) & (parts["name"] == "policy")]
    beside = cells[cells["pair_id"] == cell["pair_id"]]
    return parts[parts["cell_id"].isin(beside["cell_id"]) & (parts["name"] == "vanilla")]


def _medians(own: pd.DataFrame) -> dict[str, float]:
    """Milliseconds of each section, medians over repeats with an interval."""
    found: dict[str, float] = {}
    for section in SECTIONS:
        repeats = own.loc[own["section"] == section, "ms"].to_numpy(dtype=float)
        estimate = latency.median(np.maximum(repeats, 1e-9))
        found[f"{section}_ms"] = estimate.value if repeats.max() > 0 else 0.0
        found[f"{section}_ms_low"] = np.nan if estimate.low is None else estimate.low
        found[f"{section}_ms_high"] = np.nan if estimate.high is None else estimate.high
    return found
