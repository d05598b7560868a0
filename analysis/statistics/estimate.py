"""A number with its interval, and what the interval says of any other number: one method for both."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from scipy import special

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval; `low` and `high` are None where the data cannot give one.

    The two arms of the interval may differ: a loss that was seen twice may well be five times as large, and cannot be
    below nothing. Tests invert the interval (`beyond`), so that a verdict never contradicts what is printed beside it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    se: float | None = None
    """Standard error, in the unit of the value: half the interval over Student's t."""
    df: float | None = None
    """Degrees of freedom behind `se`; infinite where it is not estimated from a few clusters."""
    pad: float = 0.0
    """The part of the longer arm that makes up for few changes: it falls as one over the documents, not its root."""

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit (`factor` > 0)."""
        low, high, se = (None if number is None else number * factor for number in (self.low, self.high, self.se))
        return Estimate(value=self.value * factor, low=low, high=high, se=se, df=self.df, pad=self.pad * factor)

    def widened(self, factor: float) -> Estimate:
        """As if its error were `factor` times as large."""
        if self.low is None or self.high is None or factor == 1:
            return self
        low, high = (self.value + factor * (end - self.value) for end in (self.low, self.high))
        se = None if self.se is None else self.se * factor
        return replace(self, low=low, high=high, se=se, pad=self.pad * factor)

    def within(self, least: float, most: float) -> Estimate:
        """Cut to what is possible; the standard error stays."""
        if self.low is None or self.high is None:
            return self
        low, high = max(self.low, min(least, self.value)), min(self.high, max(most, self.value))
        return replace(self, low=low, high=high)

    def beyond(self, null: float) -> float:
        """One-sided p-value: of a value as far from `null` as this one, in its direction, were `null` the truth. NaN
        without an interval.

        The level at which the interval's end reaches `null`. An arm is a part that grows as Student's t, and `pad`,
        which for a smaller level grows as t squared and for a larger one falls as t: of a Poisson limit the first is
        an upper bound of the growth and the second of the fall, so that p-values err towards caution.
        """
        if self.low is None or self.high is None or self.df is None:
            return float("nan")
        arm = self.value - self.low if null < self.value else self.high - self.value
        if null == self.value:
            return 0.5
        if arm <= 0:
            return 0.0
        times = abs(null - self.value) / arm
        pad = min(self.pad / arm, 1.0)
        if times > 1 and pad > 0:  # pad x^2 + (1 - pad) x = times
            times = (math.sqrt((1 - pad) ** 2 + 4 * pad * times) - (1 - pad)) / (2 * pad)
        return t_tail(times * t_quantile((1 + LEVEL) / 2, self.df), self.df)


@lru_cache(maxsize=4096)  # the same few for thousands of rows
def t_quantile(share: float, df: float) -> float:
    """Of Student's t; of the normal where `df` is infinite. (scipy.stats' own checks take a thousand times as long.)"""
    return float(special.ndtri(share) if math.isinf(df) else special.stdtrit(df, share))


def t_tail(t: float, df: float) -> float:
    """P(T > t)."""
    return float(special.ndtr(-t) if math.isinf(df) else special.stdtr(df, -t))


def t_interval(value: float, se: float, df: float) -> Estimate:
    """Symmetric interval of Student's t."""
    half = t_quantile((1 + LEVEL) / 2, df) * se
    return Estimate(value=value, low=value - half, high=value + half, se=se, df=df)
