"""Accuracy when the assignments of confident tokens, or of unconfident ones, are changed at random (Lynx figure 6)."""

from __future__ import annotations

import json
from pathlib import Path

from analysis.figures import curves, looks, style
from analysis.figures.fig4 import reassigned
from analysis.study import Study

SIDES = {"high": "confident tokens (above the threshold)", "low": "unconfident tokens (at most the threshold)"}


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """A row a subtask: against the threshold that parts tokens, and against the share of assignments that changed,
    which is what compares the two sides at equal strength."""
    cells = reassigned(study.rows, gated=True)
    if cells.empty:
        return style.absent(f"fig6{suffix}", "reassigns by confidence (policy.gate=high,low; +paper=fig6)")
    points, left_out = curves.left_out(cells)
    if points.empty:
        return style.skip(f"fig6{suffix}", "none of its cells has a vanilla partner")
    params = points["policy_params"].map(json.loads)
    most = points["num_experts"].astype(float).map(lambda experts: (experts - 1) / experts**2)
    points = points.assign(
        side=params.map(lambda given: given["gate"]),
        threshold=100 * params.map(lambda given: given["threshold"]) / most,
        share=100 * points["changed"],
    )
    look = {side: one for side, one in looks.distinct(list(SIDES)).items() if side in set(points["side"])}
    handles, labels = curves.key(look, points)
    subtasks = sorted(points["subtask"].unique())
    fig, grid = curves.panels(subtasks, 2, len(labels))
    for subtask, line in zip(subtasks, grid, strict=True):
        of_task = points[points["subtask"] == subtask]
        for axes, x in zip(line, ("threshold", "share"), strict=True):
            curves.zero(axes)
            curves.curves(axes, of_task[of_task[x].notna()], x, "difference", "side", look)
        line[1].sharey(line[0])
        line[1].tick_params(labelleft=False)
    grid[-1][0].set_xlabel("confidence threshold\n(% of the largest variance)")
    grid[-1][1].set_xlabel("assignments changed\n(% of all)")
    curves.ylabel(fig, curves.DIFFERENCE, len(labels))
    style.legend(fig, handles, [f"changed: {SIDES[label]}" if label in look else label for label in labels])
    columns = ("side", "threshold", "share", "difference")
    return style.save(fig, folder, f"fig6{suffix}", curves.numbers(points, *columns), left_out)
