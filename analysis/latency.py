"""Decode latency of a cell: the time of its steps and the paired speed-up over vanilla, from windows of its run."""

# W windows

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.statistics import LEVEL, Array, Estimate, ratio_of_sums, serial_ratio, t_interval


def step_ms_per_window(timing: pd.DataFrame, name: str) -> Array:
    """Median step of each window in ms, `[W]`; `timing` holds the rows of one cell. Of what was timed in one place only
    (a prefill), that of each repeat."""
    return steps_of_cells(timing.assign(cell_id=""), name).get("", np.empty(0))


def window_pairs(timing: pd.DataFrame) -> Array:
    """`[W, 2]`: vanilla's step and the policy's in ms, of each window that timed both, in the order of timing.

    The policy's median step, and that times the median of the ratios that are paired step by step: a step that the
    machine disturbed says nothing about the policy.
    """
    return pairs_of_cells(timing.assign(cell_id="")).get("", np.empty((0, 2)))


def steps_of_cells(timing: pd.DataFrame, name: str) -> dict[str, Array]:
    """`step_ms_per_window` of each cell that has one, in one pass."""
    rows = _of(timing, name)
    medians = rows["ms"].groupby([rows["cell_id"], _cluster(rows)], observed=True, sort=True).median()
    return _by_cell(medians.index, medians.to_numpy(dtype=float))


def pairs_of_cells(timing: pd.DataFrame) -> dict[str, Array]:
    """`window_pairs` of each cell that has one, in one pass."""
    place = ["cell_id", "window", "repeat", "step"]
    vanilla, own = (_of(timing, name)[[*place, "ms"]] for name in ("vanilla", "policy"))
    both = own.merge(vanilla, on=place, suffixes=("", "_vanilla"))
    both["ratio"] = both["ms_vanilla"] / both["ms"]
    found = both[["ratio", "ms"]].groupby([both["cell_id"], _cluster(both)], observed=True, sort=True).median()
    return _by_cell(found.index, np.stack([found["ratio"] * found["ms"], found["ms"]], axis=1))


def _by_cell(places: pd.MultiIndex, values: Array) -> dict[str, Array]:
    """By the first level, which is sorted."""
    if not len(places):
        return {}
    cells, codes = places.levels[0], np.asarray(places.codes[0])
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return {str(cells[codes[at]]): part for at, part in zip(starts, np.split(values, starts[1:]), strict=True)}


def _of(timing: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of what was timed under this name; cells of before there were windows have one a repeat."""
    rows = timing[(timing["name"] == name) & timing["ms"].notna()]
    return rows.assign(window=rows["window"].fillna(-1).astype(int) if "window" in rows else -1)


def _cluster(rows: pd.DataFrame) -> pd.Series:
    """The window of a row, or its repeat if the rows of its cell have one window."""
    several = rows.groupby("cell_id", observed=True)["window"].transform("nunique") > 1
    return rows["window"].where(several, rows["repeat"])


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
