"""Sweeps whose truth is known: each call draws one and says whether the tables' estimate of it holds.

Lanes have harms of their own, documents are answered by vanilla and by the policy, and the estimators are those that
the tables are made with. Differences are in points.
"""

# N documents, G lanes, W windows

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis import bleu, latency, statistics
from analysis.statistics import LEVEL, Estimate

Array = NDArray[np.float64]
Random = np.random.Generator
MARGIN = 1.0


def covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None and estimate.high is not None
    return bool(estimate.low <= truth <= estimate.high)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Vanilla is right with `accuracy`; in each lane the policy spoils a share of what was right and mends a share of
    what was wrong, both drawn for the lane (beta, the larger `alike` the less lanes differ)."""

    lanes: int
    rows: int
    accuracy: float = 0.9
    spoils: float = 0.1
    mends: float = 0.2
    alike: float = 20.0

    @property
    def truth(self) -> float:
        return (1 - self.accuracy) * self.mends - self.accuracy * self.spoils

    def draw(self, rng: Random) -> tuple[Array, Array, NDArray[np.int64]]:
        """Scores of the policy and of vanilla, and the lane: three arrays [N]."""
        lane = np.repeat(np.arange(self.lanes), self.rows)
        spoils, mends = (
            rng.beta(share * self.alike, (1 - share) * self.alike, self.lanes)[lane] if share else 0.0
            for share in (self.spoils, self.mends)
        )
        vanilla = rng.random(len(lane)) < self.accuracy
        chance = rng.random(len(lane))
        return np.where(vanilla, chance >= spoils, chance < mends).astype(float), vanilla.astype(float), lane

    def covered(self, rng: Random) -> bool:
        return covers(statistics.paired_difference(*self.draw(rng)), self.truth)

    def within(self, rng: Random) -> bool:
        estimate = statistics.paired_difference(*self.draw(rng)).scaled(100)
        return statistics.tost(estimate, MARGIN) < 1 - LEVEL


@dataclass(frozen=True, kw_only=True)
class Subtasks:
    """Mean over subtasks with lanes of their own, of which each loses its points and mends none; `alike` as in
    `Sweep`."""

    losses: Sequence[float]
    lanes: int
    rows: int = 16
    alike: float = 1e6

    def _estimate(self, rng: Random) -> Estimate:
        estimates = []
        for loss in self.losses:
            sweep = Sweep(lanes=self.lanes, rows=self.rows, accuracy=1.0, spoils=loss / 100, alike=self.alike)
            policy, vanilla, lane = sweep.draw(rng)
            estimates.append(statistics.paired_difference(policy if loss else vanilla, vanilla, lane).scaled(100))
        return statistics.macro_mean(estimates)

    def covered(self, rng: Random) -> bool:
        return covers(self._estimate(rng), -float(np.mean(self.losses)))

    def within(self, rng: Random) -> bool:
        return statistics.tost(self._estimate(rng), MARGIN) < 1 - LEVEL


@dataclass(frozen=True, kw_only=True)
class Translations:
    """Sentences of ten words, 95 % of them right. The policy destroys a few sentences (no word is right), edits a word
    of many for the better or the worse, and spoils a share of the words of others; `alike` as in `Sweep`."""

    lanes: int
    rows: int
    destroys: float = 0.0
    edits: float = 0.0
    spoils: float = 0.0
    alike: float = 1e6

    def covered(self, rng: Random) -> bool:
        return covers(bleu.paired_bleu_difference(*self.draw(rng)), self.truth)

    @cached_property
    def truth(self) -> float:
        """Of a corpus of a quarter of a million sentences, or more."""
        policy, vanilla, _ = replace(self, lanes=250_000 // self.rows).draw(np.random.default_rng(0))
        return bleu.bleu_of_counts(policy.sum(axis=0)) - bleu.bleu_of_counts(vanilla.sum(axis=0))

    def draw(self, rng: Random) -> tuple[Array, Array, NDArray[np.int64]]:
        lane = np.repeat(np.arange(self.lanes), self.rows)
        vanilla = rng.random((len(lane), 10)) < 0.95
        policy = vanilla.copy()
        edited = np.flatnonzero(rng.random(len(lane)) < self.edits)
        policy[edited, rng.integers(10, size=len(edited))] ^= True
        spoiled = rng.random(len(lane)) < self._of_lane(self.spoils, rng)[lane]
        policy &= ~(spoiled[:, None] & (rng.random(vanilla.shape) < 0.3))
        policy[rng.random(len(lane)) < self._of_lane(self.destroys, rng)[lane]] = False
        return ngram_counts(policy), ngram_counts(vanilla), lane

    def _of_lane(self, share: float, rng: Random) -> Array:
        return rng.beta(share * self.alike, (1 - share) * self.alike, self.lanes) if share else np.zeros(self.lanes)


def ngram_counts(right_N10: NDArray[np.bool_]) -> Array:
    """`bleu.sentence_counts` of sentences of ten words of which these are right."""
    matched = [right_N10]
    for n in range(2, 5):
        matched.append(matched[-1][:, :-1] & right_N10[:, n - 1 :])
    ones = np.ones(len(right_N10))
    columns = [*(hits.sum(axis=1) for hits in matched), *(ones * (11 - n) for n in range(1, 5)), 10 * ones, 10 * ones]
    return np.stack(columns, axis=1).astype(float)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Times of a policy that is 1.2 times as fast as vanilla, with 3 % of noise that follows that of the window before
    by `follows`. With `precision` only as many windows are timed, and at least `least`, as half the interval of
    independent windows takes to be so narrow, relatively: when `measure` stops."""

    windows: int
    follows: float
    least: int = 10
    precision: float = 0.0

    def covered(self, rng: Random) -> bool:
        noise = [rng.normal()]
        for _ in range(self.windows - 1):
            noise.append(self.follows * noise[-1] + math.sqrt(1 - self.follows**2) * rng.normal())
        pairs = np.stack([1.2 * np.exp(0.03 * np.array(noise)), np.ones(self.windows)], axis=1)
        return covers(latency.speedup(pairs[: self._timed(pairs)]), 1.2)

    def _timed(self, pairs_W2: Array) -> int:
        if not self.precision:
            return self.windows
        for timed in range(self.least, self.windows):
            seen = statistics.ratio_of_sums(*pairs_W2[:timed].T)
            if (
                seen.low is not None
                and seen.high is not None
                and seen.high - seen.low <= 2 * self.precision * seen.value
            ):
                return timed
        return self.windows


@dataclass(frozen=True, kw_only=True)
class Plans:
    """The same documents in several shuffles. A document changes with the product of how prone it is (gamma, mean 1),
    what its lane does (beta, as in `Sweep`) and what its plan does (gamma, mean 1); vanilla is the same in all."""

    plans: int
    lanes: int
    rows: int
    accuracy: float = 0.9
    spoils: float = 0.05
    mends: float = 0.1
    alike: float = 20.0
    prone_sd: float = 0.0
    plan_sd: float = 0.0

    @property
    def truth(self) -> float:
        return (1 - self.accuracy) * self.mends - self.accuracy * self.spoils

    def _estimate(self, rng: Random) -> Estimate:
        documents = self.lanes * self.rows
        vanilla, prone = rng.random(documents) < self.accuracy, self._gamma(self.prone_sd, documents, rng)
        parts = []
        for plan, factor in enumerate(self._gamma(self.plan_sd, self.plans, rng)):
            lane = rng.permutation(documents) // self.rows
            spoils, mends = (
                factor * prone * rng.beta(share * self.alike, (1 - share) * self.alike, self.lanes)[lane]
                for share in (self.spoils, self.mends)
            )
            chance = rng.random(documents)
            policy = np.where(vanilla, chance >= spoils, chance < mends)
            parts.append((policy, vanilla, plan * self.lanes + lane, np.arange(documents), np.full(documents, plan)))
        return statistics.paired_difference(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    @staticmethod
    def _gamma(sd: float, size: int, rng: Random) -> Array:
        return rng.gamma(1 / sd**2, sd**2, size) if sd else np.ones(size)

    def covered(self, rng: Random) -> bool:
        return covers(self._estimate(rng), self.truth)

    def within(self, rng: Random) -> bool:
        return statistics.tost(self._estimate(rng).scaled(100), MARGIN) < 1 - LEVEL
