"""Do tokens whose router is surer suffer more when their experts are changed? Correlation of confidence with
divergence, by task and layer (beside Lynx figure 6)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import stats

from analysis.figures import curves, looks, style
from analysis.figures.fig4 import reassigned
from analysis.figures.fig9 import layers_of
from analysis.frame_rows import Row
from analysis.statistics import LEVEL, Array, cluster_sums, lane_draws
from analysis.study import Study
from analysis.token_tables import cells_with_tokens, read_tokens

RESAMPLES = 1000
BINS = 5
_PANELS = ("correlation by layer", "divergence by confidence")


def draw(study: Study, folder: Path, suffix: str) -> list[Path]:
    """Above, Spearman's correlation between a token's confidence in a layer and the KL divergence after it, the token's
    experts being changed at random in that layer alone; one line a subtask, 95 % intervals over lanes. Below, that
    divergence by fifths of the tokens, least confident first, mean over layers."""
    probes = reassigned(study.records.cells, gated=False)
    cells = cells_with_tokens(probes[probes["layers"].notna()])
    rows = [row for cell in cells.to_dict("records") for row in _rows_of_cell(cell)]
    if not rows:
        return style.absent(f"confidence{suffix}", "disturbs one layer and wrote its tokens (+paper=fig6)")
    frame = pd.DataFrame(rows)
    look = looks.distinct(sorted(frame["subtask"].unique()))
    handles, labels = curves.key(look, frame.assign(guard=""))
    fig, ((above,), (below,)) = curves.panels(_PANELS, 1, len(labels), sharex=False, height_in=1.6)
    curves.zero(above)
    curves.curves(above, frame, "layer", "correlation", "subtask", look, spread=0.05)
    above.xaxis.set_major_locator(MaxNLocator(integer=True))
    above.set_xlabel("layer (number, from 0)")
    above.set_ylabel("rank correlation (−1 to 1)")
    for subtask, one in look.items():
        means = np.mean([row["kl_by_bin"] for row in rows if row["subtask"] == subtask], axis=0)
        below.plot(range(1, BINS + 1), means, **one.line_kwargs())
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    below.set_yscale("log")
    below.set_xlabel("confidence (fifths of the tokens, 1: least sure)")
    below.set_ylabel("KL (millinats per token)")
    style.legend(fig, handles, labels)
    bins = pd.DataFrame(frame.pop("kl_by_bin").tolist(), columns=[f"kl_bin_{at}" for at in range(1, BINS + 1)])
    return style.save(fig, folder, f"confidence{suffix}", pd.concat([frame, bins], axis=1))


def _rows_of_cell(cell: Row) -> list[Row]:
    """One row a subtask, if the cell's policy acts in one layer."""
    acting = layers_of(cell["layers"], int(cell["num_layers"]))
    if len(acting) != 1:
        return []
    tokens = read_tokens(cell["path"])
    tokens = tokens[tokens["layer"] == acting[0]]
    rows: list[Row] = []
    for subtask, part in tokens.groupby("subtask", sort=True):
        if len(part) < 2 * BINS or part["confidence"].nunique() < 2 or part["kl"].nunique() < 2:
            continue
        value, low, high = spearman(part["confidence"].to_numpy(), part["kl"].to_numpy(), part["lane"].to_numpy())
        order = np.argsort(part["confidence"].to_numpy(), kind="stable")
        by_bin = [1000 * float(kl.mean()) for kl in np.array_split(part["kl"].to_numpy()[order], BINS)]
        place = {"subtask": subtask, "layer": acting[0], "policy_params": cell["policy_params"], "tokens": len(part)}
        ends = {"correlation": value, "correlation_low": low, "correlation_high": high}
        rows.append({**place, **ends, "kl_by_bin": by_bin})
    return rows


def spearman(x_N: Array, y_N: Array, lanes_N: NDArray[np.integer]) -> tuple[float, float, float]:
    """Rank correlation with the percentile interval of a bootstrap over lanes (NaN ends with fewer than two); ranks are
    those of the whole sample in every resample."""
    x, y = stats.rankdata(x_N), stats.rankdata(y_N)
    sums = [cluster_sums(values, lanes_N)[0] for values in (np.ones(len(x)), x, y, x * x, y * y, x * y)]
    value = float(_correlation(np.array([[each.sum() for each in sums]]))[0])
    lanes = len(sums[0])
    if lanes < 2:
        return value, float("nan"), float("nan")
    draws = lane_draws(lanes, RESAMPLES, seed=0)
    low, high = np.quantile(_correlation(draws @ np.stack(sums, axis=1)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high)


def _correlation(sums_R6: Array) -> Array:
    n, x, y, xx, yy, xy = sums_R6.T
    value_R: Array = (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
    return value_R
