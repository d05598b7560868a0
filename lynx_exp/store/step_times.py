"""Times of decode steps from the timing table of cells: one number a window. Tables, trackers and comparisons read them
here; pandas is imported with it."""

# W windows

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lynx_exp.config import VANILLA

Array = NDArray[np.float64]


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


def headline(timing: pd.DataFrame, policy: str) -> dict[str, float]:
    """Of one cell what tables show, without intervals: `step_ms` and `vanilla_step_ms`, means over windows, and
    `speedup`, the ratio of their sums; what was not timed is not there."""
    own, pairs = step_ms_per_window(timing, VANILLA if policy == VANILLA else "policy"), window_pairs(timing)
    if len(pairs):
        vanilla, step = pairs.mean(axis=0)
        return {"step_ms": float(step), "vanilla_step_ms": float(vanilla), "speedup": float(vanilla / step)}
    if not len(own):
        return {}
    step = float(own.mean())
    return {"step_ms": step} | ({"vanilla_step_ms": step, "speedup": 1.0} if policy == VANILLA else {})
