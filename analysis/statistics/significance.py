"""Is a difference beyond chance? Tests, and what testing many at once does to them."""

# N documents, M tests

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.statistics.estimate import Estimate

EXACT_BELOW = 25
"""Discordant pairs below which McNemar's test is the exact binomial one; above, chi-squared with continuity."""


def p_value(estimate: Estimate, null: float = 0.0) -> float:
    """Two-sided, that the true value is `null`: the level at which the interval's end reaches it (`Estimate.beyond`).
    NaN for an estimate without an interval."""
    if estimate.low == estimate.high == estimate.value:
        return float("nan")
    return min(2 * estimate.beyond(null), 1.0)


def holm(p_M: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values (Holm 1979): rejecting those below 5 % errs in no more than 5 % of families. NaN stays NaN and
    does not count. (statsmodels' multipletests collects garbage at each call, which takes a tenth of a second.)"""
    given = np.asarray(p_M, dtype=float)
    adjusted = np.full(len(given), np.nan)
    rising = np.argsort(given, kind="stable")[: np.count_nonzero(~np.isnan(given))]  # NaN sorts last
    rivals = np.arange(len(rising), 0, -1)
    adjusted[rising] = np.minimum(np.maximum.accumulate(given[rising] * rivals), 1.0)
    return adjusted


@dataclass(frozen=True, kw_only=True)
class Discordance:
    """Documents that policy and vanilla answer differently."""

    better: int
    worse: int
    p_value: float
    """McNemar's test, which takes documents for independent: beside the clustered interval, not in its place. 1 where
    there is no such document; NaN where scores are not 0 or 1."""


def discordance(policy_N: ArrayLike, vanilla_N: ArrayLike) -> Discordance:
    policy, vanilla = np.asarray(policy_N, dtype=float), np.asarray(vanilla_N, dtype=float)
    better, worse = int((policy > vanilla).sum()), int((policy < vanilla).sum())
    if not np.isin([policy, vanilla], (0.0, 1.0)).all():
        return Discordance(better=better, worse=worse, p_value=float("nan"))
    return Discordance(better=better, worse=worse, p_value=_mcnemar(better, worse))


def _mcnemar(better: int, worse: int) -> float:
    """McNemar (1947): the exact binomial test below EXACT_BELOW, else chi-squared with Edwards' continuity."""
    discordant = better + worse
    if not discordant:
        return 1.0
    if discordant < EXACT_BELOW:
        return min(2 * float(special.bdtr(min(better, worse), discordant, 0.5)), 1.0)
    return float(special.chdtrc(1, (abs(better - worse) - 1) ** 2 / discordant))
