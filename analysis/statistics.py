"""Estimates with 95 % intervals: means, paired differences and macro means, clustered by lane.

Rows that share a lane share the policy's decisions, so they are not independent: the lane is the cluster.
"""

# N documents, G clusters (lanes)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
FLAT = 1e-12
"""Standard errors below this (scores lie in 0..1) are rounding: the estimator has collapsed."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval; `low` and `high` are None where the data cannot give one."""

    value: float
    low: float | None = None
    high: float | None = None
    se: float | None = None
    """Standard error, in the unit of the value."""
    df: float | None = None
    """Degrees of freedom behind `se`."""

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit (`factor` > 0)."""
        low, high, se = (None if number is None else number * factor for number in (self.low, self.high, self.se))
        return Estimate(value=self.value * factor, low=low, high=high, se=se, df=self.df)


def t_interval(value: float, se: float, df: float) -> Estimate:
    """Symmetric interval of Student's t."""
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * se
    return Estimate(value=value, low=value - half, high=value + half, se=se, df=df)


def ratio_of_sums(sums_G: ArrayLike, counts_G: ArrayLike) -> Estimate:
    """Mean of all observations from each cluster's sum and count, with the cluster-robust t interval (G - 1 df).

    With one observation per cluster it is the one-sample t interval. Fewer than two clusters: no interval.
    """
    sums, counts = np.asarray(sums_G, dtype=float), np.asarray(counts_G, dtype=float)
    clusters, total = len(sums), counts.sum()
    value = float(sums.sum() / total)
    if clusters < 2:
        return Estimate(value=value)
    residuals = sums - value * counts
    se = math.sqrt(clusters / (clusters - 1) * float(residuals @ residuals)) / float(total)
    return t_interval(value, se, clusters - 1)


def mean(scores_N: ArrayLike, clusters_N: ArrayLike) -> Estimate:
    """Mean of scores in 0..1 with a cluster-robust interval, cut to 0..1.

    Where every cluster has the same mean the formula would claim certainty: 0/1 scores then get the Wilson interval of
    their share, other scores none.
    """
    scores = np.asarray(scores_N, dtype=float)
    estimate = ratio_of_sums(*cluster_sums(scores, clusters_N))
    if estimate.low is None or estimate.high is None or estimate.se is None:
        return estimate
    if estimate.se > FLAT:
        return replace(estimate, low=max(estimate.low, 0.0), high=min(estimate.high, 1.0))
    if not np.isin(scores, (0.0, 1.0)).all():
        return Estimate(value=estimate.value)
    low, high = wilson(int(scores.sum()), len(scores))
    half = max(high - estimate.value, estimate.value - low)
    se = half / float(stats.norm.ppf((1 + LEVEL) / 2))
    return Estimate(value=estimate.value, low=low, high=high, se=se, df=estimate.df)


def paired_difference(policy_N: ArrayLike, vanilla_N: ArrayLike, clusters_N: ArrayLike) -> Estimate:
    """Mean of policy minus vanilla over the same documents (scores in 0..1), clustered by lane.

    Where no cluster differs the formula would claim certainty; `unchanged` then bounds what N documents can show.
    """
    differences = np.asarray(policy_N, dtype=float) - np.asarray(vanilla_N, dtype=float)
    estimate = ratio_of_sums(*cluster_sums(differences, clusters_N))
    if estimate.se is None or estimate.se > FLAT or abs(estimate.value) > FLAT:
        return estimate
    return unchanged(len(differences), df=estimate.df)


def unchanged(documents: int, *, df: float | None) -> Estimate:
    """Difference of paired 0/1 scores of which none changed: as if one document had changed each way.

    Bonett and Price (2012), adjusted Wald interval for paired proportions, at zero discordant pairs.
    """
    se = math.sqrt(2.0) / (documents + 2)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * se
    return Estimate(value=0.0, low=-half, high=half, se=se, df=df)


def macro_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of independent estimates; their standard errors combine, with Satterthwaite's degrees of freedom.

    No interval if one of the estimates has none.
    """
    count = len(estimates)
    value = float(np.mean([estimate.value for estimate in estimates]))
    parts = [(e.se, e.df) for e in estimates if e.se is not None and e.df is not None]
    if len(parts) < count:
        return Estimate(value=value)
    variances = np.array([se**2 for se, _ in parts])
    if variances.sum() == 0:
        return Estimate(value=value)
    df = variances.sum() ** 2 / float(np.sum(variances**2 / np.array([df for _, df in parts])))
    return t_interval(value, math.sqrt(variances.sum()) / count, float(df))


def dependent_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of estimates from the same lanes, correlated in a way not known.

    Its standard error is at most the mean of theirs (as if one decided all), and that bound is used.
    """
    value = float(np.mean([estimate.value for estimate in estimates]))
    parts = [(e.se, e.df) for e in estimates if e.se is not None and e.df is not None]
    if len(parts) < len(estimates) or sum(se for se, _ in parts) == 0:
        return Estimate(value=value)
    return t_interval(value, float(np.mean([se for se, _ in parts])), min(df for _, df in parts))


def difference_of_means(first: Estimate, second: Estimate) -> Estimate:
    """First minus second, of independent observations: Welch's interval. None if one has none."""
    value = first.value - second.value
    parts = [(e.se, e.df) for e in (first, second) if e.se is not None and e.df is not None]
    variances = np.array([se**2 for se, _ in parts])
    if len(parts) < 2 or variances.sum() == 0:
        return Estimate(value=value)
    df = variances.sum() ** 2 / float(np.sum(variances**2 / np.array([df for _, df in parts])))
    return t_interval(value, math.sqrt(variances.sum()), float(df))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share, in 0..1."""
    interval = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def cluster_sums(values_N: ArrayLike, clusters_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of the values of each cluster: two arrays [G]."""
    _, index = np.unique(np.asarray(clusters_N), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values_N, dtype=float))
    return sums.astype(np.float64), np.bincount(index).astype(np.float64)
