"""Interval of a mean change of which few documents, perhaps none, show any."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.statistics.crossed import Spread
from analysis.statistics.estimate import LEVEL, Estimate, t_quantile

TAIL = (1 - LEVEL) / 2
ALIKE, COMPANIONS = 0.05, 16
"""Correlation within a lane, and among how many documents, that is assumed of changes that were not seen: what cluster
trials are planned with where nothing is known (Killip, Mahfoud and Pearce 2004)."""


def gamma_limits(total: float, variance: float, unit: float) -> tuple[float, float]:
    """Limits of the expectation of a sum of rare events of unlike sizes (weighted Poisson counts), of which `total` was
    seen with `variance`; one that was not seen is at most `unit` large (Fay and Feuer 1997).

    With equal sizes they are the exact ones of a Poisson count (Garwood 1936); where nothing was seen the upper limit
    is 3.69 units.
    """
    low = 0.0
    if total > 0 and variance > 0:
        low = float(special.gammaincinv(total**2 / variance, TAIL)) * variance / total
    elif total > 0:
        low = total
    more, wider = total + unit, variance + unit**2
    return low, float(special.gammaincinv(more**2 / wider, 1 - TAIL)) * wider / more


def mean_change(value: float, changes_N: ArrayLike, spread: Spread | None, unit: float = 1.0) -> Estimate:
    """Interval of `value`, the mean of a change over N documents, most of which may not change at all.

    Losses and gains are two sums of rare events, each with Fay and Feuer's limits, put together as the limits of a
    difference (Zou and Donner 2008). Lanes enter as in Korn and Graubard (1998): both counts are divided by the design
    effect, the variance clustered by lane over that of independent documents, corrected for few lanes by Student's t,
    and never taken for less than independent documents with one more change each way allow (Bonett and Price 2012).
    Two or three changes cannot show whether lanes matter: two more are counted, as much alike as ALIKE says.

    `unit`: the largest change of one document, such as 1 for scores in 0..1: whatever sizes were seen, one that was not
    may be as large, so nothing seen is never narrower, nor wider, than little seen.
    """
    if spread is None:
        return Estimate(value=value)
    changes = np.asarray(changes_N, dtype=float)
    documents = len(changes)
    squares = float(changes @ changes)
    added = 2 * unit**2
    alike = 1 + ALIKE * (min(spread.rows, COMPANIONS) - 1) / spread.plans
    few = (t_quantile(1 - TAIL, spread.df) / t_quantile(1 - TAIL, math.inf)) ** 2
    clustered = (spread.clustered * documents**2 * few + alike * added) / (squares + added)
    independent = (squares + added - float(changes.sum()) ** 2 / (documents + 2)) / (squares + added)
    if squares > 0:
        independent = max(independent, spread.independent * documents**2 / squares)
    ratio = max(clustered, independent)
    df = spread.df if clustered > independent and spread.clustered > 0 else math.inf
    arms = []
    for part in (np.maximum(-changes, 0.0), np.maximum(changes, 0.0)):  # losses, gains
        total = float(part.sum())
        low, high = gamma_limits(total, ratio * float(part @ part), unit * max(ratio, 1.0))
        arms.append((total - low, high - total))
    (loss_under, loss_over), (gain_under, gain_over) = arms
    down, up = math.hypot(loss_over, gain_under) / documents, math.hypot(gain_over, loss_under) / documents
    t = t_quantile(1 - TAIL, df)
    straight = t_quantile(1 - TAIL, math.inf) * math.sqrt(ratio * squares) / documents
    return Estimate(
        value=value,
        low=value - down,
        high=value + up,
        se=(down + up) / 2 / t,
        df=df,
        pad=max(max(down, up) - straight, 0.0),
    )
