"""Decode latency of a cell: time per output token and the paired speed-up over vanilla, from interleaved repeats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.statistics import LEVEL, Estimate

RESAMPLES = 4000


def tpot_per_repeat(timing: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Mean step duration of each repeat in ms, [repeats]; `timing` holds the rows of one cell."""
    rows = timing[timing["name"] == name]
    return rows.groupby("repeat", sort=True)["ms"].mean().to_numpy(dtype=float)


def speedup_per_repeat(timing: pd.DataFrame) -> NDArray[np.float64]:
    """Vanilla's time over the policy's, step by step; the median step of each repeat that timed both, [repeats].

    The median, since a step that the machine disturbed says nothing about the policy. Empty if no repeat timed both.
    """
    (places, vanilla), (own_places, own) = (_steps_of(timing, name) for name in ("vanilla", "policy"))
    both, theirs, mine = np.intersect1d(places, own_places, assume_unique=True, return_indices=True)
    if not len(both):
        return np.empty(0)
    ratios, repeats = vanilla[theirs] / own[mine], both >> _REPEAT
    return np.array([np.median(part) for part in np.split(ratios, np.flatnonzero(np.diff(repeats)) + 1)])


_REPEAT = 32
"""Bits of a place: above them the repeat, below the step."""


def _steps_of(timing: pd.DataFrame, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Place of each step that was timed, unique, and its time."""
    rows = timing[(timing["name"] == name) & timing["ms"].notna()]
    places = rows["repeat"].to_numpy(dtype=np.int64) << _REPEAT | rows["step"].to_numpy(dtype=np.int64)
    return places, rows["ms"].to_numpy(dtype=float)


def median(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Median with the percentile interval of a bootstrap over repeats; one repeat has no interval."""
    return geometric_mean_of_medians([np.asarray(values, dtype=float)], resamples=resamples, seed=seed)


def geometric_mean_of_medians(
    groups: Sequence[NDArray[np.float64]], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Geometric mean over groups (tasks) of the median of positive values, each group resampled on its own.

    No interval if a group has one value only.
    """
    if not groups or any(len(group) == 0 for group in groups):
        raise ValueError("groups: every group needs at least one value")
    if len(groups) == 1 and len(groups[0]) == 1:
        return Estimate(value=float(groups[0][0]))
    value = float(np.exp(np.mean([np.log(np.median(group)) for group in groups])))
    if any(len(group) < 2 for group in groups):
        return Estimate(value=value)
    rng = np.random.default_rng(seed)
    logs = np.zeros(resamples)
    for group in groups:
        draws = group[rng.integers(len(group), size=(resamples, len(group)))]
        logs += np.log(np.median(draws, axis=1)) / len(groups)
    low, high = np.exp(np.quantile(logs, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Estimate(value=value, low=float(low), high=float(high))
