"""Pareto frontiers that know how sure they are: which settings no other beats, with what probability, and how much each
policy's settings dominate together."""

# R resamples, N points, D benefits

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.compare import flat
from analysis.labels import of_purpose
from analysis.resample import Resampler
from analysis.statistics import LEVEL, Array, Estimate

REFERENCE_LOSS = 5.0
"""Points: hypervolumes are measured from no saving at this loss. What loses more counts for nothing."""
_AT_ONCE = 2**24
"""Comparisons of points held in memory together."""


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What a policy saves: the horizontal axis."""

    name: str
    column: str
    label: tuple[str, str]
    """Quantity and unit."""
    sign: int
    """+1: more is better; -1: less is better."""
    missing: str


SPEEDUP = Saving(
    name="speedup",
    column="speedup",
    label=("decode speed-up", "(× vanilla)"),
    sign=+1,
    missing="no timed cell has a vanilla partner (measure.latency=true records timing)",
)
ACTIVE = Saving(
    name="active",
    column="active_experts",
    label=("active experts", "(per layer and step)"),
    sign=-1,
    missing="no cell with a vanilla partner recorded active experts",
)
SAVINGS = (SPEEDUP, ACTIVE)


def nondominated(benefits_ND: ArrayLike) -> NDArray[np.bool_]:
    """True for each of N points that no other equals or exceeds in all D benefits and exceeds in one. Ties are kept.
    Leading dimensions are worlds of their own."""
    points = np.asarray(benefits_ND, dtype=float)
    mine, theirs = points[..., :, None, :], points[..., None, :, :]
    beaten = (theirs >= mine).all(axis=-1) & (theirs > mine).any(axis=-1)
    front: NDArray[np.bool_] = np.logical_not(np.any(beaten, axis=-1))
    return front


def hypervolume(benefits_RN2: ArrayLike, reference: tuple[float, float]) -> Array:
    """[R]: area that the points dominate beyond `reference`, for two benefits."""
    points = np.asarray(benefits_RN2, dtype=float)
    sides = np.maximum(points - np.asarray(reference), 0.0)
    order = np.argsort(sides[..., 0], axis=-1)
    x = np.take_along_axis(sides[..., 0], order, axis=-1)
    y = np.take_along_axis(sides[..., 1], order, axis=-1)
    highest = np.maximum.accumulate(y[..., ::-1], axis=-1)[..., ::-1]  # of this point and all that save more
    area_R: Array = (np.diff(x, axis=-1, prepend=0.0) * highest).sum(axis=-1)
    return area_R


def replicates(parts: Sequence[pd.DataFrame], saving: Saving, resampler: Resampler) -> Array:
    """[R, N, 2]: (saving, difference) of N points in R worlds, the saving signed so that more is better.

    Each of `parts` holds the rows of `compare.results` that one point averages: of a subtask, or of all of them.
    """
    return np.stack([np.stack(_point(part, saving, resampler), axis=-1) for part in parts], axis=1)


def _point(part: pd.DataFrame, saving: Saving, resampler: Resampler) -> tuple[Array, Array]:
    differences, savings = [], []
    for _, same in part.groupby("subtask", sort=False):  # seeds of one subtask are averaged first, as in `macro`
        rows = same[["cell_id", "subtask", "unit", "difference", "difference_se"]].to_dict("records")
        seeds = [
            resampler.difference(
                row["cell_id"],
                row["subtask"],
                corpus=row["unit"] == "BLEU",
                value=row["difference"],
                se=0.0 if np.isnan(row["difference_se"]) else row["difference_se"],
            )
            for row in rows
        ]
        differences.append(_average(seeds))
        if saving is ACTIVE:
            savings.append(_average([resampler.active(row["cell_id"], row["subtask"]) for row in rows]))
    if saving is SPEEDUP:
        cells = part["cell_id"].unique()
        return np.exp(np.mean([np.log(resampler.speedup(cell)) for cell in cells], axis=0)), np.mean(
            differences, axis=0
        )
    return saving.sign * np.mean(savings, axis=0), np.mean(differences, axis=0)


def _average(seeds: Sequence[Array]) -> Array:
    """Of seeds of one subtask: as wide as they are on the mean, since they share documents (as in `macro`)."""
    mean: Array = np.mean(seeds, axis=0)
    middle, spread, wanted = float(mean.mean()), float(mean.std()), float(np.mean([seed.std() for seed in seeds]))
    return mean if spread == 0 else middle + (mean - middle) * (wanted / spread)


def frontier_probability(benefits_RN2: Array, beats_N: NDArray[np.bool_]) -> Array:
    """[N]: share of the worlds in which no point that counts (`beats_N`) beats it; 0 for those that do not count."""
    worlds = len(benefits_RN2)
    found = np.zeros(benefits_RN2.shape[1])
    counted = np.flatnonzero(beats_N)
    step = max(1, _AT_ONCE // max(len(counted) ** 2, 1))
    for start in range(0, worlds, step):
        found[counted] += nondominated(benefits_RN2[start : start + step][:, counted]).sum(axis=0)
    return found / float(worlds)


def families(points: pd.DataFrame, benefits_RN2: Array, saving: Saving, origin: float) -> pd.DataFrame:
    """One row a policy: what its settings dominate together, from `origin` (vanilla's saving, signed) at REFERENCE_LOSS
    points lost: in points times the unit of the saving, with the percentile interval of the worlds.

    `points` has `policy`, `x` and `y`. Noise adds to a hypervolume, for the luckiest setting counts: many settings
    with wide intervals look better than they are.
    """
    rows = []
    reference = (origin, -REFERENCE_LOSS)
    rivals = points[~of_purpose(points["policy"], "baseline", "control")]
    for policy, part in rivals.groupby("policy", sort=True):
        at = points.index.get_indexer(part.index)
        own = np.stack([saving.sign * part["x"], part["y"]], axis=-1)
        worlds = hypervolume(benefits_RN2[:, at], reference)
        low, high = np.quantile(worlds, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        estimate = Estimate(value=float(hypervolume(own, reference)), low=float(low), high=float(high))
        rows.append({"policy": policy, "settings": len(part)} | flat("hypervolume", estimate))
    names = ["policy", "settings", "hypervolume", "hypervolume_low", "hypervolume_high"]
    return pd.DataFrame(rows, columns=names)
