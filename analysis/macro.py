"""Macro means over subtasks, per policy setting and batch size."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import guards, latency, statistics
from analysis.compare import NO_ESTIMATE, flat
from analysis.load import Records
from analysis.statistics import Estimate

log = logging.getLogger("analysis")


def summary(records: Records, rows: pd.DataFrame) -> pd.DataFrame:
    """Macro means over subtasks, one row per (setting, batch size, series), in the order of `results`.

    `score` and `difference` are plain means over subtasks, with an interval from their standard errors; several cells
    of one subtask (seeds) are averaged first and, since they share documents, do not narrow it. `active_experts`, `kl`
    and `agreement` likewise, each over the cells that have it. `speedup` and `tpot_ms` are geometric means over the
    timed cells, if each task has one. `subtasks` counts what was averaged and `all_subtasks` what the setting holds at
    that batch size: compare rows only where the two agree; `documents` are those of all of them together. The subtasks
    of a shuffled mix share lanes: their intervals bound what the mean's can be, and their active experts are one
    number. `guard` has every word that one of the subtasks has, `guarded` names those flagged.
    """
    timings = {key: part for key, part in records.timing.groupby("cell_id", observed=True)}
    usable = rows[rows["higher_is_better"].astype(bool) & (rows["unit"] != "own")]
    for name in sorted(set(rows["subtask"]) - set(usable["subtask"])):
        log.warning("subtask %s is left out of the macro means: its metric is not in points, higher is better", name)
    averaged = []
    for (setting, batch), group in usable.groupby(["setting", "batch_size"], sort=True):
        for name, part in group.groupby("series", sort=False):
            first = part.iloc[0]
            row: dict[str, Any] = {column: first[column] for column in _SERIES_FIELDS}
            row |= {"setting": setting, "batch_size": batch, "series": name, "cells": part["cell_id"].nunique()}
            row |= {"subtasks": part["subtask"].nunique(), "all_subtasks": group["subtask"].nunique()}
            row["paired"] = bool(part["paired"].all())
            row["documents"] = int(part.groupby("subtask")["documents"].max().sum())
            for quantity in ("score", "difference", "active_experts", "changed", "prompt_changed", "kl", "agreement"):
                row |= flat(quantity, _macro(part, quantity))
            for end in ("score_low", "score_high"):
                row[end] = float(np.clip(row[end], 0.0, 100.0))
            row["guard"] = guards.together(part["guard"])
            row["guarded"] = ", ".join(dict.fromkeys(part.loc[part["guard"].map(guards.is_flagged), "subtask"]))
            row["selection_us"] = float(part["selection_us"].astype(float).median())
            row |= _macro_times(part, timings)
            averaged.append(row)
    return pd.DataFrame(averaged)


_SERIES_FIELDS = (
    *(
        "model",
        "mixing",
        "policy",
        "policy_params",
        "policy_label",
        "phases",
        "layers",
        "num_experts",
        "top_k",
        "match_active",
    ),
)


def _macro(part: pd.DataFrame, quantity: str) -> Estimate:
    mixing = part["mixing"].iloc[0]
    if isinstance(mixing, str) and quantity == "active_experts":
        part = part.drop_duplicates("cell_id").assign(subtask="")
    estimates = []
    for _, same in part.groupby("subtask", sort=False):
        columns = (same[f"{quantity}{suffix}"].mean() for suffix in ("", "_se", "_df"))  # of the cells that have it
        value, se, df = (float(number) for number in columns)
        known = not (np.isnan(se) or np.isnan(df))
        estimates.append(Estimate(value=value, se=se if known else None, df=df if known else None))
    return (statistics.dependent_mean if mixing == "shuffled" else statistics.macro_mean)(estimates)


def _macro_times(part: pd.DataFrame, timings: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    cells = part.drop_duplicates("cell_id")
    of_task = {
        task: [timings.get(cell) for cell in same["cell_id"]] for task, same in cells.groupby("task", sort=False)
    }
    timed = [timing for found in of_task.values() for timing in found if timing is not None]
    if not all(any(timing is not None for timing in found) for found in of_task.values()):
        return flat("tpot_ms", NO_ESTIMATE) | flat("speedup", NO_ESTIMATE)
    is_vanilla = part.iloc[0]["policy"] == "vanilla"
    own = [latency.tpot_per_repeat(timing, "vanilla" if is_vanilla else "policy") for timing in timed]
    ratios = [latency.speedup_per_repeat(timing) for timing in timed]
    speedup = Estimate(value=1.0) if is_vanilla else _geometric(ratios)
    return flat("tpot_ms", _geometric(own)) | flat("speedup", speedup)


def _geometric(groups: Sequence[np.ndarray]) -> Estimate:
    return latency.geometric_mean_of_medians(groups) if all(map(len, groups)) else NO_ESTIMATE
