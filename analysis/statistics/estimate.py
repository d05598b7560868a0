"""A number with its interval."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval; `low` and `high` are None where the data cannot give one."""

    value: float
    low: float | None = None
    high: float | None = None
    se: float | None = None
    """Standard error, in the unit of the value."""
    df: float | None = None
    """Degrees of freedom behind `se`; infinite where it is not estimated from a few clusters."""

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit (`factor` > 0)."""
        low, high, se = (None if number is None else number * factor for number in (self.low, self.high, self.se))
        return Estimate(value=self.value * factor, low=low, high=high, se=se, df=self.df)


def t_interval(value: float, se: float, df: float) -> Estimate:
    """Symmetric interval of Student's t."""
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * se
    return Estimate(value=value, low=value - half, high=value + half, se=se, df=df)
