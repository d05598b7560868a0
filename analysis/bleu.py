"""Corpus BLEU and its paired difference, with intervals by bootstrap over lanes.

BLEU is a function of sums over sentences, so a resample of lanes costs one matrix product, not one pass over the text.
"""

# N sentences, G lanes, R resamples; columns of the counts: 4 matched n-grams, 4 n-grams, length, reference length

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics.bleu import BLEU

from analysis.statistics import Estimate, bca, cluster_sums, floored, lane_draws, unchanged, wilson

ORDER = 4
RESAMPLES = 2000
Array = NDArray[np.float64]
_SENTENCE = BLEU(effective_order=True)


def sentence_counts(hypotheses: Sequence[str], references: Sequence[str]) -> Array:
    """Sufficient statistics [N, 10] of each sentence, in sacrebleu's default tokenisation."""
    rows = [_counts(*pair) for pair in zip(hypotheses, references, strict=True)]
    return np.array(rows, dtype=float).reshape(-1, 2 * ORDER + 2)


@lru_cache(maxsize=2**17)
def _counts(hypothesis: str, reference: str) -> tuple[int, ...]:
    """Most of what policies answer is what vanilla answers: each sentence is counted once."""
    score = _SENTENCE.sentence_score(hypothesis, [reference])
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


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
    """Corpus BLEU with the BCa interval of a bootstrap over lanes; None with fewer than two lanes.

    Where all resamples agree (every sentence right), the interval is Wilson's, each sentence counted as right or wrong.
    """
    value = bleu_of_counts(counts_N10.sum(axis=0))
    sums_G10 = lane_sums(counts_N10, lanes_N)
    lanes, sentences = len(sums_G10), len(counts_N10)
    if lanes < 2:
        return Estimate(value=value)
    replicates_R = bleu_of_many(lane_draws(lanes, resamples, seed) @ sums_G10)
    if np.ptp(replicates_R) > 1e-9:
        left_out_G = bleu_of_many(sums_G10.sum(axis=0) - sums_G10)
        return _estimate(value, replicates_R, left_out_G)
    if min(abs(value), abs(value - 100.0)) > 1e-9:
        return Estimate(value=value)
    low, high = wilson(sentences if value > 50 else 0, sentences)
    return Estimate(value=value, low=100 * low, high=100 * high, se=100 * (high - low) / 1.96, df=np.inf)


def paired_bleu_difference(
    policy_N10: Array, vanilla_N10: Array, lanes_N: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """BLEU of the policy minus BLEU of vanilla on the same sentences, with a BCa interval; each resample draws the same
    lanes for both. Never narrower than independent sentences would allow (`statistics.floored`)."""
    value = bleu_of_counts(policy_N10.sum(axis=0)) - bleu_of_counts(vanilla_N10.sum(axis=0))
    policy_G10, vanilla_G10 = lane_sums(policy_N10, lanes_N), lane_sums(vanilla_N10, lanes_N)
    lanes, changed = len(policy_G10), (policy_N10 != vanilla_N10).any(axis=1)
    if lanes < 2:
        return Estimate(value=value)
    if not changed.any():
        return unchanged(len(policy_N10)).scaled(100.0)
    draws_RG = lane_draws(lanes, resamples, seed)
    replicates_R = bleu_of_many(draws_RG @ policy_G10) - bleu_of_many(draws_RG @ vanilla_G10)
    wide = Estimate(value=value, low=value, high=value, se=0.0, df=np.inf)
    if np.ptp(replicates_R) > 1e-9:
        wide = _estimate(value, replicates_R, _left_out(policy_G10, vanilla_G10))
    # What each sentence adds to the difference, in BLEU: of one left out, times N (the jackknife's influence).
    influence_N = len(policy_N10) * (value - _left_out(policy_N10, vanilla_N10))
    return floored(wide, np.where(changed, influence_N, 0.0))


def lane_sums(counts_N10: Array, lanes_N: ArrayLike) -> Array:
    """[G, 10]."""
    return np.stack([cluster_sums(column, lanes_N)[0] for column in counts_N10.T], axis=1)


def _left_out(policy: Array, vanilla: Array) -> Array:
    """The difference with one row left out each."""
    return bleu_of_many(policy.sum(axis=0) - policy) - bleu_of_many(vanilla.sum(axis=0) - vanilla)


def _estimate(value: float, replicates_R: Array, left_out_G: Array) -> Estimate:
    low, high = bca(value, replicates_R, left_out_G)
    lanes = len(left_out_G)
    se = float(np.std(replicates_R, ddof=1)) * (lanes / (lanes - 1)) ** 0.5  # the bootstrap's own is narrow by this
    return Estimate(value=value, low=low, high=high, se=se, df=lanes - 1)
