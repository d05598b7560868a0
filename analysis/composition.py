"""Do lanes that mix tasks activate more experts than lanes of one task? For cells of a mix (`task.weights`)."""

# lanes of a cell of a mix; stream: the mix's requests, under the task's name

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis import guards, statistics
from analysis.activity import by_lane
from analysis.compare import NO_ESTIMATE, flat
from analysis.labels import settings_of
from analysis.load import Records
from analysis.statistics import Array, Estimate

MIXED, CONTROL = "shuffled", "separate"

_ROW_FIELDS = ("task", "mixing", "batch_size", "seed", "policy", "policy_params", "phases", "series")
LANE_COLUMNS = (
    *("cell_id", "setting", *_ROW_FIELDS, "lane", "composition", "requests", "effective_tasks", "live_rows"),
    *("active_experts", "guard"),
)
SUMMARY_COLUMNS = ("setting", "task", "batch_size", "series", "policy", "mixing")


def lanes(records: Records, rows: pd.DataFrame) -> pd.DataFrame:
    """One row per lane of every cell of a mix, cells in the order of `rows` (those of `compare.results`).

    `composition` counts the lane's requests by subtask ("mini_gsm8k 4 + mini_wmt16 4"); `effective_tasks` is the
    exponential of their Shannon entropy: 1 for one task, S for S in equal parts. `live_rows` is the mean over all
    decode steps, `active_experts` (per layer) that over scored tokens; NaN for a lane that made none in decode.
    `setting` does not name the mixing: that is what is compared. `guard` is that of the cell.
    """
    of_cell = rows[rows["mixing"].notna()].drop_duplicates("cell_id").set_index("cell_id")
    if of_cell.empty:
        return pd.DataFrame({name: [] for name in LANE_COLUMNS})
    flags = rows.groupby("cell_id")["guard"].agg(guards.together)
    settings = settings_of(records.cells, workload=False)
    keys = ["cell_id", "lane"]
    mixed = records.responses[records.responses["cell_id"].isin(of_cell.index)]
    counts = mixed.groupby([*keys, "subtask"], observed=True).size().unstack(fill_value=0)
    held = pd.DataFrame({"composition": _composition(counts), "requests": counts.sum(axis=1)}, index=counts.index)
    held["effective_tasks"] = effective_number(counts.to_numpy(dtype=float))
    steps = records.steps[records.steps["cell_id"].isin(of_cell.index)]
    held["live_rows"] = steps.groupby(keys, observed=True)["live_rows"].mean()
    active = by_lane(records)
    active = active[active["cell_id"].isin(of_cell.index) & (active["tokens"] > 0)].astype({"cell_id": str})
    active = active.groupby(keys)[["weighted", "tokens"]].sum().reset_index()
    active["active_experts"] = active["weighted"] / active["tokens"]
    frame = held.reset_index().astype({"cell_id": str}).merge(active[[*keys, "active_experts"]], on=keys, how="left")
    for name in _ROW_FIELDS:
        frame[name] = frame["cell_id"].map(of_cell[name])
    frame["setting"] = frame["cell_id"].map(settings)
    frame["guard"] = frame["cell_id"].map(flags)
    order = frame["cell_id"].map({cell: number for number, cell in enumerate(of_cell.index)})
    return frame.loc[order.sort_values(kind="stable").index, list(LANE_COLUMNS)].reset_index(drop=True)


def effective_number(counts_GS: np.ndarray) -> Array:
    """exp(Shannon entropy) of each row's shares: [G]."""
    shares: Array = counts_GS / counts_GS.sum(axis=1, keepdims=True)
    logs: Array = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy_G: Array = -(shares * logs).sum(axis=1)
    return np.exp(entropy_G)


def summary(lanes: pd.DataFrame) -> pd.DataFrame:
    """One row per (setting, task, batch size, series, mixing), over the lanes that decoded; `lanes` as above.

    `active_experts` is the mean over lanes, each counted once with its t interval: weighted by steps, as in
    `compare.results`, tasks with long responses would count for more where lanes are separate than where they are
    shuffled, and the two would differ by that alone. `difference` is shuffled minus separate: the same requests in
    other company, so Welch's interval, which takes them for independent, is wider than need be. NaN if one of the two
    is missing, or if no lane mixes (batch size 1). Several cells (seeds) are averaged and do not narrow an interval.
    """
    known = lanes[lanes["active_experts"].notna()] if len(lanes) else lanes
    found: dict[tuple[object, ...], tuple[dict[str, Any], Estimate]] = {}
    for key, part in known.groupby(list(SUMMARY_COLUMNS), sort=False):
        active = _over_cells(part)
        row = dict(zip(SUMMARY_COLUMNS, key, strict=True))
        row |= {"cells": part["cell_id"].nunique(), "lanes": len(part), "guard": guards.together(part["guard"])}
        row |= {"effective_tasks": float(part["effective_tasks"].mean())} | flat("active_experts", active)
        found[key] = row, active
    rows = []
    for key, (row, active) in found.items():
        control = found.get((*key[:-1], CONTROL))
        compared = key[-1] == MIXED and control is not None and row["effective_tasks"] > 1
        difference = statistics.difference_of_means(active, control[1]) if compared and control else NO_ESTIMATE
        rows.append(row | flat("difference", difference))
    order = {series: number for number, series in enumerate(dict.fromkeys(key[3] for key in found))}
    return pd.DataFrame(sorted(rows, key=lambda row: (order[row["series"]], row["mixing"])))


def _composition(counts: pd.DataFrame) -> list[str]:
    names = [str(name) for name in counts.columns]
    return [
        " + ".join(f"{name} {count}" for name, count in zip(names, row, strict=True) if count)
        for row in counts.itertuples(index=False, name=None)
    ]


def _over_cells(part: pd.DataFrame) -> Estimate:
    estimates = [
        statistics.ratio_of_sums(values, np.ones(len(values)))
        for _, values in part.groupby("cell_id", sort=False)["active_experts"]
    ]
    one = statistics.dependent_mean(estimates)
    return one if one.se is not None and one.se > statistics.FLAT else Estimate(value=one.value)
