"""Is a difference within a margin? The claim that papers make, and how many documents would decide it."""

from __future__ import annotations

import math

from scipy import optimize

from analysis.statistics.estimate import LEVEL, Estimate, t_quantile

POWER = 0.80
"""With which a sample of the size named here shows equivalence, if there is no difference at all."""


def tost(estimate: Estimate, margin: float) -> float:
    """p-value of "the true value is outside -margin..margin": two one-sided tests (Schuirmann 1987), the larger of
    both, each by inverting the interval (`Estimate.beyond`). Below 5 %: within the margin at 95 %.

    NaN for an estimate without an interval.
    """
    _check(margin)
    if estimate.low is None:
        return float("nan")
    if abs(estimate.value) >= margin:
        return max(1.0 - estimate.beyond(math.copysign(margin, estimate.value)), 0.5)
    return max(estimate.beyond(margin), estimate.beyond(-margin))


def documents_needed(estimate: Estimate, documents: int, margin: float, power: float = POWER) -> float:
    """Documents with which `tost` would show equivalence with probability `power`, were there no difference at all,
    changes being as frequent and as large as here.

    Half the interval's width there is t(0.95) se, and t((1 + power) / 2) se more is what chance may add; se falls as
    the root of the documents, what makes up for few changes (`Estimate.pad`) as the documents. Lanes and degrees of
    freedom grow along. NaN for an estimate without an interval.
    """
    _check(margin)
    if estimate.se is None or estimate.df is None or estimate.se <= 0:
        return float("nan")
    df, full = estimate.df, t_quantile((1 + LEVEL) / 2, estimate.df)
    pad = min(estimate.pad / full, estimate.se)
    straight = estimate.se - pad

    def excess(log_share: float) -> float:
        """Half the width that so many times as many documents would give, over the margin, in logarithms."""
        share = math.exp(log_share)
        there = max((df + 1) * share - 1, 1.0)
        level, chance = t_quantile(LEVEL, there), t_quantile((1 + power) / 2, there)
        return math.log(((level + chance) * straight / math.sqrt(share) + level * pad / share) / margin)

    # Falls as the share grows; at one degree of freedom the quantiles are below 10, normally above 1.
    ratio = estimate.se / margin
    share = math.exp(optimize.brentq(excess, 2 * math.log(min(ratio, ratio**0.5)), 2 * math.log(10 * max(ratio, 1.0))))
    return float(math.ceil(documents * share - 1e-9))


RARE = 0.5
"""Share of its documents that a kind of lane may lose which was not seen."""


def lanes_needed(margin: float) -> int:
    """Lanes of which a kind that loses RARE of its documents, and is frequent enough to cost `margin` points, would
    have been seen twice with 95 %: once cannot show whether lanes matter.

    No interval holds what it saw nothing of (the rule of three: Hanley and Lippman-Hand 1983): with fewer lanes,
    "within the margin" rests on lanes being alike.
    """
    _check(margin)
    share = min(margin / 100 / RARE, 1.0)

    def excess(lanes: float) -> float:
        """P(at most one of them is of the kind) beyond 5 %: it falls with their number."""
        return math.exp((lanes - 1) * math.log1p(-share)) * (1 + (lanes - 1) * share) - (1 - LEVEL)

    return 2 if share > 0.9 else math.ceil(optimize.brentq(excess, 1.0, 20 / share))


def _check(margin: float) -> None:
    if margin <= 0:
        raise ValueError(f"margin={margin:g}: must be above 0")
