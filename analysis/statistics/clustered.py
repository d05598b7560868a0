"""Means and paired differences of documents, clustered by lane."""

# N documents, G clusters (lanes)

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.statistics.changes import TAIL, mean_change
from analysis.statistics.crossed import numbered, spread
from analysis.statistics.estimate import LEVEL, Estimate, t_interval, t_quantile

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


def mean_of(values_M: ArrayLike, clusters_M: ArrayLike, documents_M: ArrayLike | None = None) -> Estimate:
    """Mean of values of any size: `ratio_of_sums` by cluster, or, where a document has several values, clustered by
    document as well (`crossed.spread`)."""
    if documents_M is None:
        return ratio_of_sums(*cluster_sums(values_M, clusters_M))
    values = np.asarray(values_M, dtype=float)
    value = float(values.mean())
    found = spread(values - value, documents_M, clusters_M, np.zeros(len(values), int))
    return Estimate(value=value) if found is None else t_interval(value, math.sqrt(found.clustered), found.df)


def mean(
    scores_N: ArrayLike, clusters_N: ArrayLike, documents_N: ArrayLike | None = None, plans_N: ArrayLike | None = None
) -> Estimate:
    """Mean of scores in 0..1, with the exact binomial interval (Clopper and Pearson 1934) at the effective number of
    documents (Korn and Graubard 1998): as many as would have the variance that was seen between clusters, corrected for
    few of them by Student's t, but no more than there are. It is conservative, and stays in 0..1.

    Where documents ran under several plans, `documents_N` and `plans_N` name both (`crossed.spread`).
    """
    scores = np.asarray(scores_N, dtype=float)
    value = float(scores.mean())
    found = spread(scores - value, *_names(scores, documents_N), clusters_N, *_plans(scores, plans_N))
    if found is None:
        return Estimate(value=value)
    documents = len(scores) if documents_N is None else len(np.unique(np.asarray(documents_N)))
    few = (t_quantile(1 - TAIL, found.df) / t_quantile(1 - TAIL, math.inf)) ** 2
    variance = max(found.clustered * few, found.independent)
    effective = float(documents)
    if variance > FLAT**2 and value * (1 - value) > 0:
        effective = min(value * (1 - value) / variance, effective)
    right, wrong = value * effective, (1 - value) * effective
    low = float(special.betaincinv(right, wrong + 1, TAIL)) if right > 0 else 0.0
    high = float(special.betaincinv(right + 1, wrong, 1 - TAIL)) if wrong > 0 else 1.0
    df = found.df if found.clustered * few > found.independent else math.inf
    return Estimate(value=value, low=low, high=high, se=(high - low) / 2 / t_quantile(1 - TAIL, df), df=df)


def paired_difference(
    policy_N: ArrayLike,
    vanilla_N: ArrayLike,
    clusters_N: ArrayLike,
    documents_N: ArrayLike | None = None,
    plans_N: ArrayLike | None = None,
) -> Estimate:
    """Mean of policy minus vanilla over the same documents (scores in 0..1), clustered by lane (`changes.mean_change`).

    Where documents ran under several plans, `documents_N` and `plans_N` name both: a document then counts once, with
    its mean change, and the variance has what differs between lanes beside what differs between documents
    (`crossed.spread`). No interval with fewer than two lanes.
    """
    changes = np.asarray(policy_N, dtype=float) - np.asarray(vanilla_N, dtype=float)
    value = float(changes.mean())
    documents = _names(changes, documents_N)[0]
    found = spread(changes - value, documents, clusters_N, *_plans(changes, plans_N))
    averaged = changes if documents_N is None else per_document(changes, documents)
    estimate = mean_change(value, averaged, found)
    return clip_to_unit_scores(estimate, policy_N, vanilla_N, clusters_N, documents_N, plans_N)


def per_document(values_M: ArrayLike, documents_M: ArrayLike) -> NDArray[np.float64]:
    """Mean of each document over its plans: [N]."""
    sums, counts = cluster_sums(values_M, documents_M)
    return sums / counts


def clip_to_unit_scores(
    estimate: Estimate, policy_N: ArrayLike, vanilla_N: ArrayLike, *names: ArrayLike | None
) -> Estimate:
    """Cut to what scores in 0..1 allow: vanilla, whose score lies in its own interval, cannot lose more than it has."""
    if estimate.low is None:
        return estimate
    vanilla = mean(vanilla_N, *names)  # type: ignore[arg-type]
    if vanilla.low is None or vanilla.high is None:
        return estimate.within(-1.0, 1.0)
    return estimate.within(-vanilla.high, 1.0 - vanilla.low)


def _names(values: NDArray[np.float64], documents_N: ArrayLike | None) -> tuple[ArrayLike]:
    return (np.arange(len(values)) if documents_N is None else documents_N,)


def _plans(values: NDArray[np.float64], plans_N: ArrayLike | None) -> tuple[ArrayLike]:
    return (np.zeros(len(values), int) if plans_N is None else plans_N,)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share, in 0..1. (By hand: scipy.stats takes a second to import.)"""
    share, z = successes / trials, float(special.ndtri((1 + LEVEL) / 2))
    center = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return (center - half if successes else 0.0), (center + half if successes < trials else 1.0)


def cluster_sums(values_N: ArrayLike, clusters_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of the values of each cluster: two arrays [G]."""
    index = numbered(clusters_N)
    sums = np.bincount(index, weights=np.asarray(values_N, dtype=float))
    return sums.astype(np.float64), np.bincount(index).astype(np.float64)
