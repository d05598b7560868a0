"""Means and paired differences of documents, clustered by lane."""

# N documents, G clusters (lanes)

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.statistics.estimate import LEVEL, Estimate, t_interval

FLAT = 1e-12
"""Standard errors below this (scores lie in 0..1) are rounding: the estimator has collapsed."""


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
    return Estimate(value=estimate.value, low=low, high=high, se=se, df=math.inf)


def paired_difference(policy_N: ArrayLike, vanilla_N: ArrayLike, clusters_N: ArrayLike) -> Estimate:
    """Mean of policy minus vanilla over the same documents (scores in 0..1), clustered by lane.

    Never narrower than independent documents would allow (`floored`): where only a few documents change, the lanes that
    hold them are too few for a cluster-robust formula to see how far they may vary. (Simulated: with 64 documents and
    2 % of them changing it covers 60 % instead of 95 %.)
    """
    changes = np.asarray(policy_N, dtype=float) - np.asarray(vanilla_N, dtype=float)
    return floored(ratio_of_sums(*cluster_sums(changes, clusters_N)), changes)


def floored(estimate: Estimate, changes_N: ArrayLike) -> Estimate:
    """`estimate` of a mean change, or its widest alternative: the interval of N independent documents, one more of
    which had changed each way, each by as much (root mean square) as those that did.

    For 0/1 scores: Bonett and Price (2012), adjusted Wald interval for paired proportions. Normal, not t: the count of
    changes is its own variance. An estimate without an interval (a single lane) keeps none.
    """
    changes = np.asarray(changes_N, dtype=float)
    if estimate.se is None or estimate.df is None or estimate.low is None or estimate.high is None:
        return estimate
    changed = np.abs(changes) > FLAT
    if not changed.any():
        return unchanged(len(changes))
    size = math.sqrt(float(np.mean(changes[changed] ** 2)))
    better, worse, padded = (
        int((changes[changed] > 0).sum()) + 1,
        int((changes[changed] < 0).sum()) + 1,
        len(changes) + 2,
    )
    up, down = better / padded, worse / padded
    se = size * math.sqrt((up + down - (up - down) ** 2) / padded)
    floor = t_interval(estimate.value, se, math.inf)
    assert floor.low is not None and floor.high is not None
    if floor.high - floor.low <= estimate.high - estimate.low:
        return estimate
    return floor


def unchanged(documents: int) -> Estimate:
    """Difference of paired 0/1 scores of which none changed: as if one document had changed each way."""
    return t_interval(0.0, math.sqrt(2.0) / (documents + 2), math.inf)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share, in 0..1."""
    interval = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def cluster_sums(values_N: ArrayLike, clusters_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of the values of each cluster: two arrays [G]."""
    _, index = np.unique(np.asarray(clusters_N), return_inverse=True)
    sums = np.bincount(index, weights=np.asarray(values_N, dtype=float))
    return sums.astype(np.float64), np.bincount(index).astype(np.float64)
