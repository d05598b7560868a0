"""Which layers matter: accuracy when all layers but some are disturbed, and when only those are (Lynx figure 9)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.figures import curves, looks, style
from analysis.figures.fig4 import reassigned
from analysis.study import Study

PRESERVED, ONLY = "all layers but these disturbed", "these layers alone disturbed"


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """One panel a subtask; a group of layers along x. The dashed line is the loss with all layers disturbed."""
    cells = reassigned(study.rows, gated=False)
    cells = cells[(cells["phases"] == "decode") & cells["num_layers"].notna()]
    groups = cells[cells["layers"].notna()].copy()
    named = [_group(row["layers"], int(row["num_layers"])) for row in groups.to_dict("records")]
    groups["what"] = [what for what, _ in named]
    groups["first"] = [min(group) for _, group in named]
    groups["group"] = [_name(group) for _, group in named]
    groups = groups[groups["policy_params"].isin(set(groups.loc[groups["what"] == PRESERVED, "policy_params"]))]
    if groups.empty:
        return style.absent(f"fig9{suffix}", "spares some layers (policy=reassign layers=...; +paper=fig9)")
    points, left_out = curves.left_out(groups)
    if points.empty:
        return style.skip(f"fig9{suffix}", "none of its cells has a vanilla partner")
    points["place"] = points["first"].map({first: at for at, first in enumerate(sorted(points["first"].unique()))})
    whole = cells[cells["layers"].isna() & cells["policy_params"].isin(points["policy_params"])]
    look = {what: one for what, one in looks.distinct((PRESERVED, ONLY)).items() if what in set(points["what"])}
    handles, labels = curves.key(look, points)
    subtasks = sorted(points["subtask"].unique())
    fig, grid = curves.panels(subtasks, 1, len(labels), sharex=True, height_in=1.4)
    ticks = points.drop_duplicates("place").sort_values("place")
    for subtask, (axes,) in zip(subtasks, grid, strict=True):
        curves.zero(axes)
        curves.curves(axes, points[points["subtask"] == subtask], "place", "difference", "what", look, spread=0.06)
        for value in whole.loc[whole["subtask"] == subtask, "difference"].dropna():
            axes.axhline(value, color="#444444", linewidth=0.7, linestyle="--", zorder=1)
        axes.set_xticks(ticks["place"], ticks["group"])
    grid[-1][0].set_xlabel("layers (numbers, from 0)")
    curves.ylabel(fig, curves.DIFFERENCE, len(labels))
    style.legend(fig, handles, labels)
    numbers = pd.concat([points, whole.assign(what="all layers disturbed")])
    return style.save(
        fig, folder, f"fig9{suffix}", curves.numbers(numbers, "what", "group", "difference", "changed"), left_out
    )


def _group(text: str, num_layers: int) -> tuple[str, list[int]]:
    """What `layers=TEXT` does to which group: of a set of layers and of all others, the group is the smaller."""
    acting = layers_of(text, num_layers)
    others = sorted(set(range(num_layers)) - set(acting))
    return (PRESERVED, others) if 0 < len(others) < len(acting) else (ONLY, acting)


def layers_of(text: str, num_layers: int) -> list[int]:
    """The layers that `layers=TEXT` names (as `lynx_exp.routing.layer_range`, which has checked it)."""
    chosen: set[int] = set()
    for part in text.split(","):
        ends = [int(end) if end.strip() else None for end in part.split(":")]
        chosen |= set(range(num_layers)[slice(*ends)]) if len(ends) == 2 else {int(part) % num_layers}
    return sorted(chosen)


def _name(layers: list[int]) -> str:
    apart = [second - first for first, second in zip(layers, layers[1:], strict=False)]
    if len(layers) > 1 and set(apart) == {1}:
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))
