"""Is a difference within a margin? The claim that papers make, and how many documents would decide it."""

from __future__ import annotations

import math

from scipy import optimize, stats

from analysis.statistics.estimate import LEVEL, Estimate

POWER = 0.80
"""With which a sample of the size named here shows equivalence, if there is no difference at all."""


def tost(estimate: Estimate, margin: float) -> float:
    """p-value of "the true value is outside -margin..margin": two one-sided t tests (Schuirmann 1987), the larger of
    both. Below 5 %: within the margin at 95 %; the same as the 90 % interval lying inside it.

    NaN for an estimate without a standard error.
    """
    if margin <= 0:
        raise ValueError(f"margin={margin:g}: must be above 0")
    if estimate.se is None or estimate.df is None or estimate.se <= 0:
        return float("nan")
    above = stats.t.sf((estimate.value + margin) / estimate.se, estimate.df)
    below = stats.t.cdf((estimate.value - margin) / estimate.se, estimate.df)
    return float(max(above, below))


def documents_needed(estimate: Estimate, documents: int, margin: float, power: float = POWER) -> float:
    """Documents with which `tost` would show equivalence with probability `power`, were there no difference at all:
    n = (t(0.95) + t((1 + power) / 2))^2 sigma^2 / margin^2, sigma being as large as here (se^2 documents).

    Lanes and degrees of freedom grow along. NaN for an estimate without a standard error.
    """
    if margin <= 0:
        raise ValueError(f"margin={margin:g}: must be above 0")
    if estimate.se is None or estimate.df is None or estimate.se <= 0:
        return float("nan")
    se, df = estimate.se, estimate.df

    def excess(log_share: float) -> float:
        """Half the width that so many times as many documents would give, over the margin, in logarithms."""
        share = math.exp(log_share)
        there = max((df + 1) * share - 1, 1.0)
        quantiles = float(stats.t.ppf(LEVEL, there) + stats.t.ppf((1 + power) / 2, there))
        return math.log(se * quantiles / margin) - log_share / 2

    # Falls as the share grows; at one degree of freedom the quantiles are below 10, normally above 2.
    share = math.exp(optimize.brentq(excess, 2 * math.log(se / margin), 2 * math.log(se * 10 / margin)))
    return float(math.ceil(documents * share - 1e-9))
