"""A ratio of sums over windows that were timed one after another, on a machine that drifts."""

# W windows, in the order of timing

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from analysis.statistics.clustered import ratio_of_sums
from analysis.statistics.estimate import Estimate, t_interval

FEWEST = 3
"""Cosines below which nothing can be said of a drift."""
STRONGEST = 0.9
"""Correlation of neighbouring windows."""


def serial_ratio(tops_W: ArrayLike, bottoms_W: ArrayLike) -> Estimate:
    """Sum of `tops_W` over sum of `bottoms_W`, with the wider of two intervals: windows independent (`ratio_of_sums`),
    or alike as far as they follow one another.

    The latter weighs the residuals with the first J cosines and takes Student's t at J degrees of freedom (the
    equal-weighted cosine estimator of the long-run variance: Lazarus, Lewis, Stock and Watson 2018), J being W^(1/2)
    rounded, and at least FEWEST: what drifts slowly shows in slow waves. Waves too short for it are raised by what an
    autoregression of the windows would have lost there (prewhitening: Andrews and Monahan 1992), its coefficient at
    most STRONGEST and corrected twice for its bias, once with what was seen and once with that (Kendall 1954). One
    window has no interval.
    """
    tops, bottoms = np.asarray(tops_W, dtype=float), np.asarray(bottoms_W, dtype=float)
    plain = ratio_of_sums(tops, bottoms)
    windows = len(tops)
    if plain.low is None or plain.high is None or windows <= FEWEST:
        return plain
    cosines = max(FEWEST, round(math.sqrt(windows)))
    residuals_W = tops - plain.value * bottoms
    places_W = (np.arange(windows) + 0.5) / windows
    waves_JW = math.sqrt(2) * np.cos(np.pi * np.outer(np.arange(1, cosines + 1), places_W))
    total = float(residuals_W @ residuals_W)
    follows = float(residuals_W[1:] @ residuals_W[:-1]) / total if total > 0 else 0.0
    corrected = follows + (1 + 4 * follows) / windows
    rho = min(max(follows + (1 + 4 * corrected) / windows, 0.0), STRONGEST)
    pitch_J = np.cos(np.pi * np.arange(1, cosines + 1) / windows)
    seen_J = (1 - rho) ** 2 / (1 - 2 * rho * pitch_J + rho**2)  # of an autoregression, against its slowest wave
    long_run = float(np.mean((waves_JW @ residuals_W) ** 2 / seen_J))
    drifting = t_interval(plain.value, math.sqrt(long_run) / float(bottoms.sum()), cosines)
    assert drifting.low is not None
    return drifting if drifting.low < plain.low else plain
