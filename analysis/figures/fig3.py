"""How often each expert is used: over a whole task, and within one batch (Lynx figure 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.figures import style
from analysis.frame_rows import Row
from analysis.study import Study
from analysis.token_tables import cells_with_tokens, expert_counts


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """A row a subtask: share of assignments by expert, of a layer in the middle; on the left over all decode steps, on
    the right in the first full one. Above each, the spread (standard deviation over mean) of all layers, and what
    uniform routing of as many tokens would show by chance alone."""
    vanilla = study.records.cells[study.records.cells["policy"] == "vanilla"]
    cells = cells_with_tokens(vanilla)
    usages = [usage for cell in cells.to_dict("records") for usage in _usages(cell)]
    if not usages:
        return style.absent(f"fig3{suffix}", "of vanilla wrote its tokens (policy=vanilla tokens=true; +paper=fig3)")
    fig = style.figure(1.25 * len(usages) + 0.5)
    grid = fig.subplots(len(usages), 2, sharex="col", sharey="row", squeeze=False)
    for (whole, one), line in zip(usages, grid, strict=True):
        for axes, part, name in ((line[0], whole, "all steps"), (line[1], one, "one step")):
            experts = np.arange(part["share"].size)
            axes.bar(experts, 100 * part["share"], color=style.PALETTE[0], width=0.8, zorder=2)
            axes.axhline(100 / len(experts), color="#000000", linewidth=0.7, linestyle="--", zorder=3)
            spread = f"spread {100 * part['spread']:.0f} % (chance {100 * part['chance']:.0f} %)"
            axes.set_title(f"{part['subtask']}: {name}\n{spread}", loc="left", fontsize=6.5)
            axes.grid(axis="x", visible=False)
    for axes in grid[-1]:
        axes.set_xlabel(f"expert (number, layer {usages[0][0]['layer']})")
    fig.supylabel("share of assignments (%)", fontsize=style.RC["axes.labelsize"])
    numbers = pd.concat([_numbers(part) for pair in usages for part in pair], ignore_index=True)
    return style.save(fig, folder, f"fig3{suffix}", numbers)


def _usages(cell: Row) -> list[tuple[Row, Row]]:
    """Of each subtask that decodes: over all decode steps, and in the first full one."""
    experts = int(cell["num_experts"])
    who, counts = expert_counts(cell["path"], experts)
    top_k, layer = float(cell["top_k"]), int(who["layer"].max() + 1) // 2
    found: list[tuple[Row, Row]] = []
    for subtask in who["subtask"].unique():
        own = (who["subtask"] == subtask).to_numpy()
        rows = counts[own].sum(axis=1)
        full = own.copy()
        full[own] = rows == cell["batch_size"] * top_k
        if not full.any():
            continue
        layers = who["layer"].to_numpy()
        whole = np.stack([counts[own & (layers == at)].sum(axis=0) for at in range(layers.max() + 1)])
        at_layer = full & (who["layer"] == layer).to_numpy()
        common = {"cell_id": cell["cell_id"], "subtask": subtask, "batch_size": cell["batch_size"], "layer": layer}
        everything = common | {"steps": "all", "tokens": int(whole[0].sum() / top_k)}
        single = common | {"steps": "one", "tokens": int(cell["batch_size"])}
        found.append(
            (
                everything | _spread(whole, whole[layer], everything["tokens"], top_k),
                single | _spread(counts[full], counts[at_layer][0], single["tokens"], top_k),
            )
        )
    return found


def _spread(counts: NDArray[np.int64], shown: NDArray[np.int64], tokens: int, top_k: float) -> dict[str, object]:
    """`spread`: mean over the rows of `counts` of standard deviation over mean; `chance`: that of uniform routing,
    where each of `tokens` runs top_k of E experts: sqrt((E - K) / (K T))."""
    experts = counts.shape[1]
    spread = float((counts.std(axis=1) / counts.mean(axis=1)).mean())
    chance = float(np.sqrt((experts - top_k) / (top_k * tokens)))
    return {"share": shown / shown.sum(), "spread": spread, "chance": chance}


def _numbers(part: Row) -> pd.DataFrame:
    fixed = {name: value for name, value in part.items() if name != "share"}
    return pd.DataFrame({"expert": np.arange(part["share"].size), "share": part["share"]}).assign(**fixed)
