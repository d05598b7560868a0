"""Macro means over subtasks, per policy setting and batch size."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from analysis import guards, latency, statistics
from analysis.compare import NO_ESTIMATE, flat
from analysis.frame_rows import Row
from analysis.load import Records
from analysis.shared_documents import SharedDocuments
from analysis.statistics import Estimate

log = logging.getLogger("analysis")

_AVERAGED = (
    *("score", "difference", "active_experts", "changed", "prompt_changed"),
    *("kl", "agreement", "retained", "prompt_retained"),
)


def summary(records: Records, rows: pd.DataFrame) -> pd.DataFrame:
    """Macro means over subtasks, one row per (setting, batch size, series), in the order of `results`.

    `score` and `difference` are plain means over subtasks, with an interval from their standard errors, wider where the
    subtasks of a task change at the same documents (`SharedDocuments`); several cells
    of one subtask (seeds) are averaged first and, since they share documents, do not narrow it. `active_experts`, `kl`
    and `agreement` likewise, each over the cells that have it; those of HARDWARE too, without an interval. `speedup`,
    `step_ms` and the other times are geometric
    means over the timed cells, if each task has one. `subtasks` counts what was averaged and `all_subtasks` what the
    setting holds at that batch size: compare rows only where the two agree; `documents` are those of all of them
    together. The subtasks of a shuffled mix share lanes: their intervals bound what the mean's can be, and their active
    experts are one number. `guard` has every word that one of the subtasks has, `guarded` names those flagged.
    """
    usable = rows[rows["higher_is_better"].astype(bool) & (rows["unit"] != "own")]
    for name in sorted(set(rows["subtask"]) - set(usable["subtask"])):
        log.warning("subtask %s is left out of the macro means: its metric is not in points, higher is better", name)
    averaged, shared = [], SharedDocuments(records)
    groups = _by(usable.to_dict("records"), "setting", "batch_size")
    for (setting, batch), group in sorted(groups.items(), key=lambda item: item[0]):
        every = len({row["subtask"] for row in group})
        for (name,), part in _by(group, "series").items():
            first = part[0]
            row: dict[str, Any] = {column: first[column] for column in _SERIES_FIELDS}
            row |= {"setting": setting, "batch_size": batch, "series": name}
            row |= {"cells": len({each["cell_id"] for each in part})}
            subtasks = _by(part, "subtask")
            row |= {"subtasks": len(subtasks), "all_subtasks": every}
            row["paired"] = all(each["paired"] for each in part)
            for counted in ("documents", "lanes"):
                row[counted] = sum(max(int(each[counted]) for each in same) for same in subtasks.values())
            row["plans"] = min(int(each["plans"]) for each in part)
            for quantity in _AVERAGED:
                row |= flat(quantity, estimate := _macro(part, quantity, shared.factors(part, quantity)))
                if quantity == "difference":
                    row["difference_pad"] = estimate.pad
            for end, least in (
                ("score_low", 0.0),
                ("score_high", 0.0),
                ("difference_low", -100.0),
                ("difference_high", -100.0),
            ):
                row[end] = float(np.clip(row[end], least, 100.0))
            row |= {name: _mean(part, name) for name in ("live_rows", "full_steps")}
            row["guard"] = guards.together(each["guard"] for each in part)
            row["timing_final"] = all(each["timing_final"] for each in part)
            row["guarded"] = ", ".join(dict.fromkeys(e["subtask"] for e in part if guards.is_flagged(e["guard"])))
            row["selection_us"] = float(
                pd.Series([each["selection_us"] for each in _cells(part)], dtype=float).dropna().median()
            )
            row |= {name: _mean(_cells(part), name) for name in HARDWARE}
            row |= _macro_times(part)
            averaged.append(row)
    return pd.DataFrame(averaged)


# A choice as well: what all rows of one series agree in, so that their mean may have it too. Seeds, plans and documents
# differ between them.
_SERIES_FIELDS = (
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
)


def _by(rows: Sequence[Row], *columns: str) -> dict[tuple[object, ...], list[Row]]:
    """In the order of first rows. (Groups of a frame with a hundred columns cost a thousand times as much.)"""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def _mean(same: Sequence[Row], column: str) -> float:
    """Of those that have it."""
    known = [float(row[column]) for row in same if not pd.isna(row[column])]
    return sum(known) / len(known) if known else math.nan


def _macro(part: Sequence[Row], quantity: str, wider: Mapping[str, float]) -> Estimate:
    """`wider`: of subtasks that share documents (`SharedDocuments.factors`)."""
    mixing = part[0]["mixing"]
    if isinstance(mixing, str) and quantity == "active_experts":
        together = [[same[0] for same in _by(part, "cell_id").values()]]
    else:
        together = list(_by(part, "subtask").values())
    estimates = []
    for same in together:
        value = _mean(same, quantity)
        pad = _mean(same, "difference_pad") if quantity == "difference" else 0.0  # of the cells that have it
        known = {name: _mean(same, f"{quantity}_{name}") for name in ("low", "high", "se", "df")}
        bare = any(np.isnan(number) for number in known.values())
        estimate = Estimate(value=value) if bare else Estimate(value=value, **known, pad=pad)
        estimates.append(estimate.widened(wider.get(str(same[0]["subtask"]), 1.0)))
    return (statistics.dependent_mean if mixing == "shuffled" else statistics.macro_mean)(estimates)


TIMES = ("step_ms", "vanilla_step_ms", "speedup", "run_ms_per_token", "run_speedup", "tokens_per_s")


HARDWARE = ("step_gb", "gb_s", "copy_gb_s", "s_mbu", "j_per_token", "vanilla_j_per_token", "us_per_expert", "fixed_ms")
"""What the hardware gave."""


def _cells(part: Sequence[Row]) -> list[Row]:
    """A row of each cell."""
    return [same[0] for same in _by(part, "cell_id").values()]


def _macro_times(part: Sequence[Row]) -> dict[str, float]:
    cells = _cells(part)
    every = all(any(cell["windows"] > 0 for cell in of) for of in _by(cells, "task").values())
    estimates = {name: _geometric(cells, name) if every else NO_ESTIMATE for name in TIMES}
    return dict(chain.from_iterable(flat(name, estimate).items() for name, estimate in estimates.items()))


def _geometric(cells: Sequence[Row], name: str) -> Estimate:
    """Over the cells that were timed, if all of them have it."""
    found = []
    for row in cells:
        if not row["windows"] > 0:
            continue
        known = {end: float(row[f"{name}_{end}"]) for end in ("low", "high", "se", "df")}
        bare = any(np.isnan(number) for number in known.values())
        found.append(Estimate(value=row[name]) if bare else Estimate(value=row[name], **known))
    if not all(each.value > 0 for each in found):  # NaN is not, either
        return NO_ESTIMATE
    if all(each.value == 1.0 and each.se is None for each in found):
        return Estimate(value=1.0)
    return latency.geometric_mean(found)
