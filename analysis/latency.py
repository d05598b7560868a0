"""Decode latency of a cell with its intervals: the time of its steps and the paired speed-up over vanilla, from the
windows of its run (`lynx_exp.store.step_times`)."""

# W windows

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.frame_rows import Row
from analysis.statistics import LEVEL, Array, Estimate, ratio_of_sums, serial_ratio, t_interval


def mean_step(steps_W: Array) -> Estimate:
    """Mean over windows with its t interval; one window has none."""
    return ratio_of_sums(steps_W, np.ones(len(steps_W)))


def speedup(pairs_W2: Array) -> Estimate:
    """Vanilla's time over the policy's: sums over windows, which are a sample of the run's places, and the interval of
    their ratio: by window, and wider where neighbouring windows drift together (`statistics.serial_ratio`)."""
    return serial_ratio(pairs_W2[:, 0], pairs_W2[:, 1])


def median(values_N: ArrayLike, *, resamples: int = 4000, seed: int = 0) -> Estimate:
    """Median over repeats with the percentile interval of its bootstrap; one repeat has none."""
    values = np.asarray(values_N, dtype=float)
    center = float(np.median(values))
    if len(values) < 2:
        return Estimate(value=center)
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=center, low=float(low), high=float(high))


def geometric_mean(estimates: Sequence[Estimate]) -> Estimate:
    """Of independent positive estimates (of tasks); the interval by the delta method on their logarithms, with the
    fewest degrees of freedom among them. No interval if one has none."""
    if not estimates:
        raise ValueError("estimates: at least one is needed")
    if len(estimates) == 1:
        return estimates[0]
    center = float(np.mean([math.log(each.value) for each in estimates]))
    errors = [(each.se / each.value, each.df) for each in estimates if each.se is not None and each.df is not None]
    if len(errors) < len(estimates):
        return Estimate(value=math.exp(center))
    se = math.sqrt(sum(error**2 for error, _ in errors)) / len(errors)
    df = min(df for _, df in errors)
    logs = t_interval(center, se, df)
    assert logs.low is not None and logs.high is not None
    value = math.exp(center)
    return Estimate(value=value, low=math.exp(logs.low), high=math.exp(logs.high), se=value * se, df=df)


WIDE = 2.0
"""Times the precision that was asked for: beyond it a time is not final, although its windows, taken for independent,
had reached it. Timing stops by those; the interval that is shown knows that neighbours drift together."""


def is_final(cell: Row, times: Row) -> bool:
    """Whether the cell's times may be ranked: they have the requested precision, and the machine was not busy.

    It is also true where nothing was timed, and for vanilla, which is the denominator of every ratio.
    """
    if cell["policy"] == "vanilla":
        return True
    known = {name: cell[name] for name in ("precision", "precision_reached", "busy") if not pd.isna(cell[name])}
    width = (times["speedup_high"] - times["speedup_low"]) / times["speedup"]  # NaN where there is no interval
    wide = "precision" in known and width > 2 * WIDE * known["precision"]
    return not (wide or known.get("busy", False)) and bool(known.get("precision_reached", True))
