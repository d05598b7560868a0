"""Corpus BLEU and its paired difference, with intervals by bootstrap over lanes.

BLEU is a function of sums over sentences, so a resample of lanes costs one matrix product, not one pass over the text.
"""

# N sentences, G lanes, R resamples; columns of the counts: 4 matched n-grams, 4 n-grams, length, reference length

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics.bleu import BLEU

from analysis.statistics import LEVEL, Estimate, cluster_sums, unchanged, wilson

ORDER = 4
RESAMPLES = 1000
Array = NDArray[np.float64]


def sentence_counts(hypotheses: Sequence[str], references: Sequence[str]) -> Array:
    """Sufficient statistics [N, 10] of each sentence, in sacrebleu's default tokenisation."""
    metric = BLEU(effective_order=True)
    rows = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        score = metric.sentence_score(hypothesis, [reference])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, dtype=float).reshape(-1, 2 * ORDER + 2)


def bleu_of_counts(counts_10: ArrayLike) -> float:
    """BLEU (0..100) of summed statistics, by sacrebleu with corpus_bleu's defaults."""
    counts = [int(value) for value in np.asarray(counts_10)]
    score = BLEU.compute_bleu(
        correct=counts[:ORDER],
        total=counts[ORDER : 2 * ORDER],
        sys_len=counts[-2],
        ref_len=counts[-1],
        smooth_method="exp",
    )
    return float(score.score)


def bleu_of_many(counts_R10: Array) -> Array:
    """`bleu_of_counts` of every row at once: [R]."""
    correct, total = counts_R10[:, :ORDER], counts_R10[:, ORDER : 2 * ORDER]
    length, reference = counts_R10[:, -2], counts_R10[:, -1]
    possible = (correct.sum(axis=1) > 0) & (total > 0).all(axis=1)
    zeros_so_far = np.cumsum(correct == 0, axis=1)
    smoothed = np.where(correct > 0, correct, 0.5**zeros_so_far)
    log_precision = np.log(100.0 * smoothed / np.maximum(total, 1.0)).mean(axis=1)
    log_brevity = np.minimum(0.0, 1.0 - reference / np.maximum(length, 1.0))
    return np.where(possible, np.exp(log_precision + log_brevity), 0.0)


def corpus_bleu(counts_N10: Array, lanes_N: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Corpus BLEU with the percentile interval of a bootstrap over lanes; None with fewer than two lanes.

    Where all resamples agree (every sentence right), the interval is Wilson's, each sentence counted as right or wrong.
    """
    value = bleu_of_counts(counts_N10.sum(axis=0))
    sums_G10 = _lane_sums(counts_N10, lanes_N)
    lanes, sentences = len(sums_G10), len(counts_N10)
    if lanes < 2:
        return Estimate(value=value)
    replicates_R = bleu_of_many(_resample(lanes, resamples, seed) @ sums_G10)
    if np.ptp(replicates_R) > 1e-9:
        return _percentiles(value, replicates_R, df=lanes - 1)
    if min(abs(value), abs(value - 100.0)) > 1e-9:
        return Estimate(value=value)
    low, high = wilson(sentences if value > 50 else 0, sentences)
    return Estimate(value=value, low=100 * low, high=100 * high, se=100 * (high - low) / 1.96, df=lanes - 1)


def paired_bleu_difference(
    policy_N10: Array, vanilla_N10: Array, lanes_N: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """BLEU of the policy minus BLEU of vanilla on the same sentences; each resample draws the same lanes for both."""
    value = bleu_of_counts(policy_N10.sum(axis=0)) - bleu_of_counts(vanilla_N10.sum(axis=0))
    policy_G10, vanilla_G10 = _lane_sums(policy_N10, lanes_N), _lane_sums(vanilla_N10, lanes_N)
    lanes = len(policy_G10)
    if lanes < 2:
        return Estimate(value=value)
    draws_RG = _resample(lanes, resamples, seed)
    replicates_R = bleu_of_many(draws_RG @ policy_G10) - bleu_of_many(draws_RG @ vanilla_G10)
    if np.ptp(replicates_R) > 1e-9:
        return _percentiles(value, replicates_R, df=lanes - 1)
    if abs(value) > 1e-9:
        return Estimate(value=value)
    return unchanged(len(policy_N10), df=lanes - 1).scaled(100.0)


def _lane_sums(counts_N10: Array, lanes_N: ArrayLike) -> Array:
    return np.stack([cluster_sums(column, lanes_N)[0] for column in counts_N10.T], axis=1)


def _resample(lanes: int, resamples: int, seed: int) -> Array:
    """How often each lane was drawn: [R, G], each row sums to G."""
    return np.random.default_rng(seed).multinomial(lanes, np.full(lanes, 1 / lanes), size=resamples).astype(float)


def _percentiles(value: float, replicates_R: Array, *, df: float) -> Estimate:
    low, high = np.quantile(replicates_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high), se=float(np.std(replicates_R, ddof=1)), df=df)
