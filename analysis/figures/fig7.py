"""Accuracy when the expert of one rank is denied to every token (Lynx figure 7)."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from analysis.figures import curves, looks, style
from analysis.study import Study


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One line a subtask, one panel a way of denying: the next expert enters (replace), or none does (drop)."""
    cells = study.rows[(study.rows["policy"] == "deny_rank") & study.rows["layers"].isna()]
    if cells.empty:
        return style.absent(f"fig7{suffix}", "denies a rank (policy=deny_rank; +paper=fig7)")
    points, left_out = curves.left_out(cells)
    if points.empty:
        return style.skip(f"fig7{suffix}", "none of its cells has a vanilla partner")
    points = points.assign(
        rank=points["policy_params"].map(lambda text: json.loads(text)["rank"]),
        mode=points["policy_params"].map(lambda text: json.loads(text).get("mode", "replace")),
    )
    look = looks.distinct(sorted(points["subtask"].unique()))
    modes = sorted(points["mode"].unique())
    handles, labels = curves.key(look, points)
    fig, grid = curves.panels([f"denied rank: {mode}d" for mode in modes], 1, len(labels), height_in=1.9)
    for mode, (axes,) in zip(modes, grid, strict=True):
        curves.zero(axes)
        curves.curves(axes, points[points["mode"] == mode], "rank", "difference", "subtask", look, spread=0.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[-1][0].set_xlabel("rank denied (0: the token's first expert)")
    curves.ylabel(fig, curves.DIFFERENCE, len(labels))
    style.legend(fig, handles, labels)
    return style.save(
        fig, folder, f"fig7{suffix}", curves.numbers(points, "rank", "mode", "difference", "changed"), left_out
    )
