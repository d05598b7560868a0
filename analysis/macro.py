"""Macro means over subtasks, per policy setting and batch size."""

from __future__ import annotations

import logging
from itertools import chain
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
    and `agreement` likewise, each over the cells that have it. `speedup`, `step_ms` and the other times are geometric
    means over the timed cells, if each task has one. `subtasks` counts what was averaged and `all_subtasks` what the
    setting holds at that batch size: compare rows only where the two agree; `documents` are those of all of them
    together. The subtasks of a shuffled mix share lanes: their intervals bound what the mean's can be, and their active
    experts are one number. `guard` has every word that one of the subtasks has, `guarded` names those flagged.
    """
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
            for counted in ("documents", "lanes"):
                row[counted] = int(part.groupby("subtask")[counted].max().sum())
            row["plans"] = int(part["plans"].min())
            for quantity in ("score", "difference", "active_experts", "changed", "prompt_changed", "kl", "agreement"):
                row |= flat(quantity, estimate := _macro(part, quantity))
                if quantity == "difference":
                    row["difference_pad"] = estimate.pad
            for end, least in (
                ("score_low", 0.0),
                ("score_high", 0.0),
                ("difference_low", -100.0),
                ("difference_high", -100.0),
            ):
                row[end] = float(np.clip(row[end], least, 100.0))
            row |= {name: float(part[name].mean()) for name in ("live_rows", "full_steps")}
            row["guard"] = guards.together(part["guard"])
            row["timing_final"] = bool(part["timing_final"].all())
            row["guarded"] = ", ".join(dict.fromkeys(part.loc[part["guard"].map(guards.is_flagged), "subtask"]))
            row["selection_us"] = float(part["selection_us"].astype(float).median())
            row |= _macro_times(part)
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
        found = {name: float(same[f"{quantity}{name}"].mean()) for name in ("", "_low", "_high", "_se", "_df")}
        pad = float(same["difference_pad"].mean()) if quantity == "difference" else 0.0  # of the cells that have it
        known = {name.removeprefix("_"): number for name, number in found.items() if name}
        bare = any(np.isnan(number) for number in known.values())
        estimates.append(Estimate(value=found[""]) if bare else Estimate(value=found[""], **known, pad=pad))
    return (statistics.dependent_mean if mixing == "shuffled" else statistics.macro_mean)(estimates)


TIMES = ("step_ms", "vanilla_step_ms", "speedup", "run_ms_per_token", "run_speedup", "tokens_per_s")


def _macro_times(part: pd.DataFrame) -> dict[str, Any]:
    cells = part.drop_duplicates("cell_id")
    every = bool((cells["windows"] > 0).groupby(cells["task"]).any().all())
    estimates = {name: _geometric(cells, name) if every else NO_ESTIMATE for name in TIMES}
    return dict(chain.from_iterable(flat(name, estimate).items() for name, estimate in estimates.items()))


def _geometric(cells: pd.DataFrame, name: str) -> Estimate:
    """Over the cells that were timed, if all of them have it."""
    found = []
    for row in cells[cells["windows"] > 0].to_dict("records"):
        value, se, df = (row[f"{name}{end}"] for end in ("", "_se", "_df"))
        known = not (np.isnan(se) or np.isnan(df))
        found.append(Estimate(value=value, se=se if known else None, df=df if known else None))
    if not all(each.value > 0 for each in found):  # NaN is not, either
        return NO_ESTIMATE
    if all(each.value == 1.0 and each.se is None for each in found):
        return Estimate(value=1.0)
    return latency.geometric_mean(found)
