"""Bootstrap over lanes, for what is no mean: corpus metrics, frontiers, hypervolumes."""

# R resamples, G lanes

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.statistics.estimate import LEVEL, t_quantile

Array = NDArray[np.float64]


@lru_cache(maxsize=4)  # a study has few numbers of lanes, and draws take longer than what is done with them
def lane_draws(lanes: int, resamples: int, seed: int) -> Array:
    """How often each lane was drawn: [R, G], each row sums to G; not to be written to."""
    drawn = np.random.default_rng(seed).multinomial(lanes, np.full(lanes, 1 / lanes), size=resamples).astype(float)
    drawn.flags.writeable = False
    return drawn


def bca(
    value: float, replicates_R: Array, left_out_G: Array, *, level: float = LEVEL, expanded: bool = True
) -> tuple[float, float]:
    """Bias-corrected and accelerated interval (Efron 1987) of a statistic, from its bootstrap replicates and from its
    values with one lane left out each (the jackknife, which gives the acceleration).

    `expanded`: at the tail probability that makes up for the bootstrap's narrowness with few lanes, namely
    Phi(-t sqrt(G/(G-1))) with Student's t at G - 1 degrees of freedom (Hesterberg 2015, section 5.3), so that lanes
    count as in the t intervals beside it. scipy.stats.bootstrap's BCa is the same without it; here replicates come
    from one product of matrices, where scipy gathers items, which thousands of lanes make slow.
    """
    lanes = len(left_out_G)
    tail = (1 - level) / 2
    if expanded:
        tail = float(special.ndtr(math.sqrt(lanes / (lanes - 1)) * t_quantile(tail, lanes - 1)))
    below = (np.mean(replicates_R < value) + np.mean(replicates_R <= value)) / 2
    edge = 0.5 / len(replicates_R)  # a share of 0 or 1 is one that so many replicates did not see
    bias = float(special.ndtri(np.clip(below, edge, 1 - edge)))
    pulls_G = left_out_G.mean() - left_out_G
    spread = float((pulls_G**2).sum())
    acceleration = float((pulls_G**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    ends = []
    for z in (special.ndtri(tail), -special.ndtri(tail)):
        reached = bias + float(z)
        # Beyond the pole the formula turns round; the end is then the outermost replicate.
        factor = 1 - acceleration * reached
        ends.append(float(special.ndtr(bias + reached / factor)) if factor > 0 else float(z > 0))
    low, high = np.quantile(replicates_R, ends)
    return float(low), float(high)
