"""Accuracy under random reassignment in prefill only, in decode only, in both (Lynx figure 4), at equal strength:
against the share of assignments changed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from analysis.figures import curves, looks, style
from analysis.frame_rows import Row
from analysis.study import Study
from lynx_exp.wording import counted

PHASES = ("prefill", "decode", "both")


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One panel a subtask, one line for each phase in which assignments change. The share is of the assignments in that
    phase; of both, the mean of the two shares."""
    cells = reassigned(study.rows, gated=False)
    cells = cells[cells["layers"].isna()]
    if cells["phases"].nunique() < 2:
        return style.absent(f"fig4{suffix}", "reassigns in several phases (policy=reassign phases=...; +paper=fig4)")
    points, left_out = curves.left_out(cells)
    if points.empty:
        return style.skip(f"fig4{suffix}", "none of its cells has a vanilla partner")
    points = points.assign(share=[100 * _share(row) for row in points.to_dict("records")])
    for reason, affected in (("not on record", points["share"].isna()), ("0", points["share"] == 0)):
        if affected.any():
            left_out.append(f"not drawn, share of assignments changed {reason}: {counted(affected.sum(), 'point')}")
            points = points[~affected]
    if points.empty:
        return style.skip(f"fig4{suffix}", left_out[-1])
    look = {phase: one for phase, one in looks.distinct(PHASES).items() if phase in set(points["phases"])}
    handles, labels = curves.key(look, points)
    subtasks = sorted(points["subtask"].unique())
    fig, grid = curves.panels(subtasks, 1, len(labels), sharex=True, height_in=1.4)
    for subtask, (axes,) in zip(subtasks, grid, strict=True):
        curves.zero(axes)
        curves.curves(axes, points[points["subtask"] == subtask], "share", "difference", "phases", look)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    grid[-1][0].set_xlabel("assignments changed (% of those in the phase)")
    curves.ylabel(fig, curves.DIFFERENCE, len(labels))
    style.legend(fig, handles, [f"changed in {label}" if label in look else label for label in labels])
    return style.save(fig, folder, f"fig4{suffix}", curves.numbers(points, "share", "difference"), left_out)


def reassigned(rows: pd.DataFrame, *, gated: bool) -> pd.DataFrame:
    """Rows of random reassignment, of all tokens or (`gated`) of those on one side of a threshold."""
    cells = rows[rows["policy"] == "reassign"]
    gates = cells["policy_params"].map(lambda text: json.loads(text).get("gate", "none"))
    return cells[(gates != "none") == gated]


def _share(row: Row) -> float:
    shares = {"decode": [row["changed"]], "prefill": [row["prompt_changed"]]}
    given = shares.get(row["phases"], [row["changed"], row["prompt_changed"]])
    return float(sum(given) / len(given))
