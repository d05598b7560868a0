"""One estimate from several: means over subtasks, differences of independent means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.statistics.estimate import Estimate, t_interval


def macro_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of independent estimates; their standard errors combine, with Satterthwaite's degrees of freedom.

    No interval if one of the estimates has none.
    """
    value = float(np.mean([estimate.value for estimate in estimates]))
    parts = _known(estimates)
    if len(parts) < len(estimates) or sum(se for se, _ in parts) == 0:
        return Estimate(value=value)
    se, df = _together(parts)
    return t_interval(value, se / len(estimates), df)


def dependent_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean of estimates from the same lanes, correlated in a way not known.

    Its standard error is at most the mean of theirs (as if one decided all), and that bound is used.
    """
    value = float(np.mean([estimate.value for estimate in estimates]))
    parts = _known(estimates)
    if len(parts) < len(estimates) or sum(se for se, _ in parts) == 0:
        return Estimate(value=value)
    return t_interval(value, float(np.mean([se for se, _ in parts])), min(df for _, df in parts))


def difference_of_means(first: Estimate, second: Estimate) -> Estimate:
    """First minus second, of independent observations: Welch's interval. None if one has none."""
    value = first.value - second.value
    parts = _known((first, second))
    if len(parts) < 2 or sum(se for se, _ in parts) == 0:
        return Estimate(value=value)
    return t_interval(value, *_together(parts))


def _known(estimates: Sequence[Estimate]) -> list[tuple[float, float]]:
    """(standard error, degrees of freedom) of those that have them."""
    return [(e.se, e.df) for e in estimates if e.se is not None and e.df is not None]


def _together(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Of a sum: standard error, and Satterthwaite's degrees of freedom."""
    total = sum(se**2 for se, _ in parts)
    spread = sum(se**4 / df for se, df in parts)
    return math.sqrt(total), total**2 / spread if spread > 0 else math.inf
