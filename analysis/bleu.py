"""Corpus BLEU, with an interval by bootstrap over lanes, and its paired difference.

BLEU is a function of sums over sentences, so a resample of lanes costs one matrix product, not one pass over the text.
"""

# N sentences, G lanes, R resamples; columns of the counts: 4 matched n-grams, 4 n-grams, length, reference length

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sacrebleu.metrics.bleu import BLEU

from analysis import statistics
from analysis.statistics import Array, Estimate, bca, cluster_sums, lane_draws, wilson

ORDER = 4
RESAMPLES = 2000
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
    clip_to_unit_scores = (correct.sum(axis=1) > 0) & (total > 0).all(axis=1)
    zeros_so_far = np.cumsum(correct == 0, axis=1)
    smoothed = np.where(correct > 0, correct, 0.5**zeros_so_far)
    log_precision = np.log(100.0 * smoothed / np.maximum(total, 1.0)).mean(axis=1)
    log_brevity = np.minimum(0.0, 1.0 - reference / np.maximum(length, 1.0))
    return np.where(clip_to_unit_scores, np.exp(log_precision + log_brevity), 0.0)


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
    policy_N10: Array,
    vanilla_N10: Array,
    lanes_N: ArrayLike,
    documents_N: ArrayLike | None = None,
    plans_N: ArrayLike | None = None,
) -> Estimate:
    """BLEU of the policy minus BLEU of vanilla on the same sentences, with the interval of `statistics.mean_change`.

    What a sentence adds is the difference that exchanging its two answers makes, times N: zero for one that did not
    change, as much as the whole BLEU for one that was destroyed, and for one that was not seen to change at most that.
    The variance is the jackknife's, clustered by lane, over sentences and plans as in `statistics.paired_difference`;
    with several plans the value is the mean of their differences. No interval with fewer than two lanes.
    """
    sentences = len(policy_N10)
    documents = np.arange(sentences) if documents_N is None else np.asarray(documents_N)
    plans = np.zeros(sentences, int) if plans_N is None else np.asarray(plans_N)
    values, tops = [], []
    changes_N, influence_N = np.zeros(sentences), np.zeros(sentences)
    for plan in np.unique(plans):
        at = plans == plan
        policy, vanilla = policy_N10[at], vanilla_N10[at]
        ends = bleu_of_many(np.stack([policy.sum(axis=0), vanilla.sum(axis=0)]))
        values.append(float(ends[0] - ends[1]))
        changed = (policy != vanilla).any(axis=1)
        if changed.any():
            changes_N[np.flatnonzero(at)[changed]] = at.sum() * _exchanged(policy, vanilla, changed)
            influence_N[at] = at.sum() * (values[-1] - _left_out(policy, vanilla))
        tops.append(float(ends.max()))
    value = float(np.mean(values))
    spread = statistics.spread(influence_N - influence_N.mean(), documents, lanes_N, plans)
    averaged = changes_N if documents_N is None else statistics.per_document(changes_N, documents)
    unit = max(float(np.mean(tops)), float(np.abs(averaged).max(initial=0.0)), 1.0)
    estimate = statistics.mean_change(value, averaged, spread, unit)
    before = corpus_bleu(vanilla_N10[plans == plans[0]], np.asarray(lanes_N)[plans == plans[0]])
    least, most = (0.0, 100.0) if before.low is None or before.high is None else (before.low, before.high)
    return estimate.within(-most, 100.0 - least)


def lane_sums(counts_N10: Array, lanes_N: ArrayLike) -> Array:
    """[G, 10]."""
    return np.stack([cluster_sums(column, lanes_N)[0] for column in counts_N10.T], axis=1)


def _exchanged(policy_N10: Array, vanilla_N10: Array, changed_N: NDArray[np.bool_]) -> Array:
    """Of each changed sentence: what its change does to BLEU, alone among vanilla's answers and last among the
    policy's, on average."""
    change = (policy_N10 - vanilla_N10)[changed_N]
    before, after = vanilla_N10.sum(axis=0), policy_N10.sum(axis=0)
    first = bleu_of_many(before + change) - bleu_of_many(before[None])
    last = bleu_of_many(after[None]) - bleu_of_many(after - change)
    return (first + last) / 2


def _left_out(policy: Array, vanilla: Array) -> Array:
    """The difference with one row left out each."""
    return bleu_of_many(policy.sum(axis=0) - policy) - bleu_of_many(vanilla.sum(axis=0) - vanilla)


def _estimate(value: float, replicates_R: Array, left_out_G: Array) -> Estimate:
    low, high = bca(value, replicates_R, left_out_G)
    lanes = len(left_out_G)
    se = float(np.std(replicates_R, ddof=1)) * (lanes / (lanes - 1)) ** 0.5  # the bootstrap's own is narrow by this
    return Estimate(value=value, low=low, high=high, se=se, df=lanes - 1)
