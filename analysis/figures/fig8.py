"""Accuracy when every token keeps its first ranks only (Lynx figure 8)."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from analysis.figures import curves, looks, style
from analysis.study import Study


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One line a subtask, through the number of ranks kept."""
    cells = study.rows[(study.rows["policy"] == "keep_ranks") & study.rows["layers"].isna()]
    if cells.empty:
        return style.absent(f"fig8{suffix}", "keeps only some ranks (policy=keep_ranks; +paper=fig8)")
    points, left_out = curves.left_out(cells)
    if points.empty:
        return style.skip(f"fig8{suffix}", "none of its cells has a vanilla partner")
    points = points.assign(ranks=points["policy_params"].map(lambda text: json.loads(text)["ranks"]))
    look = looks.distinct(sorted(points["subtask"].unique()))
    handles, labels = curves.key(look, points)
    fig, ((axes,),) = curves.panels(["first ranks kept"], 1, len(labels), height_in=1.9)
    curves.zero(axes)
    curves.curves(axes, points, "ranks", "difference", "subtask", look, spread=0.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    top_k = points["top_k"].dropna().unique()
    of = f" of {top_k[0]:.0f}" if len(top_k) == 1 else ""
    axes.set_xlabel(f"ranks kept (experts a token{of})")
    axes.set_ylabel(curves.DIFFERENCE)
    style.legend(fig, handles, labels)
    return style.save(fig, folder, f"fig8{suffix}", curves.numbers(points, "ranks", "difference", "changed"), left_out)
