"""One estimate from several: means over subtasks, differences of independent means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.statistics.estimate import LEVEL, Estimate, t_quantile


def macro_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of independent estimates; their arms combine, each side as the root of squares (Zou and Donner 2008),
    with Satterthwaite's degrees of freedom.

    No interval if one of the estimates has none.
    """
    return _sum([(estimate, 1 / len(estimates)) for estimate in estimates])


def dependent_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of estimates from the same lanes, correlated in a way not known.

    Its error is at most the mean of theirs (as if one decided all), and that bound is used.
    """
    value = float(np.mean([estimate.value for estimate in estimates]))
    parts = _known(estimates)
    if len(parts) < len(estimates) or sum(se for se, _ in parts) == 0:
        return Estimate(value=value)
    df = min(df for _, df in parts)
    arms = [_arms(estimate, df) for estimate in estimates]
    down, up = (float(np.mean(side)) for side in zip(*arms, strict=True))
    return _from_arms(value, down, up, df, float(np.mean([estimate.pad for estimate in estimates])))


def difference_of_means(first: Estimate, second: Estimate) -> Estimate:
    """First minus second, of independent observations: Welch's interval, or that of unlike arms. None if one has
    none."""
    return _sum([(first, 1.0), (second, -1.0)])


def _sum(terms: Sequence[tuple[Estimate, float]]) -> Estimate:
    """Of independent estimates, each times its weight."""
    value = float(sum(weight * estimate.value for estimate, weight in terms))
    parts = [
        (abs(weight) * se, df) for (_, weight), (se, df) in zip(terms, _known([e for e, _ in terms]), strict=False)
    ]
    if len(parts) < len(terms) or sum(se for se, _ in parts) == 0:
        return Estimate(value=value)
    df = _together(parts)
    downs, ups, pads = [], [], []
    for estimate, weight in terms:
        down, up = _arms(estimate, df)
        downs.append(abs(weight) * (down if weight > 0 else up))
        ups.append(abs(weight) * (up if weight > 0 else down))
        pads.append(abs(weight) * estimate.pad)
    down, up = math.hypot(*downs), math.hypot(*ups)
    straight = math.hypot(*(max(max(d, u) - p, 0.0) for d, u, p in zip(downs, ups, pads, strict=True)))
    return _from_arms(value, down, up, df, max(max(down, up) - straight, 0.0))


def _arms(estimate: Estimate, df: float) -> tuple[float, float]:
    """Lengths below and above the value, at other degrees of freedom."""
    assert estimate.low is not None and estimate.high is not None and estimate.df is not None
    share = (1 + LEVEL) / 2
    factor = t_quantile(share, df) / t_quantile(share, estimate.df)
    return factor * (estimate.value - estimate.low), factor * (estimate.high - estimate.value)


def _from_arms(value: float, down: float, up: float, df: float, pad: float) -> Estimate:
    se = (down + up) / 2 / t_quantile((1 + LEVEL) / 2, df)
    return Estimate(value=value, low=value - down, high=value + up, se=se, df=df, pad=pad)


def _known(estimates: Sequence[Estimate]) -> list[tuple[float, float]]:
    """(standard error, degrees of freedom) of those that have them."""
    return [(e.se, e.df) for e in estimates if e.se is not None and e.df is not None]


def _together(parts: Sequence[tuple[float, float]]) -> float:
    """Satterthwaite's degrees of freedom of a sum."""
    total = sum(se**2 for se, _ in parts)
    spread = sum(se**4 / df for se, df in parts)
    return total**2 / spread if spread > 0 else math.inf
