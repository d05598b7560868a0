"""Step times and speed-ups of interleaved windows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import latency, load
from analysis.compare import results
from analysis.statistics import Estimate
from lynx_exp.engine.timing.repeats import ratio_interval
from lynx_exp.engine.timing.window_timing import StepTime, pairs_of
from lynx_exp.store.read import read_cells
from lynx_exp.store.step_times import headline, pairs_of_cells, step_ms_per_window, steps_of_cells, window_pairs
from lynx_exp.tracking.run_content import summary


def _timing(vanilla: list[list[list[float]]], policy: list[list[list[float]]]) -> pd.DataFrame:
    """Window, repeat, step."""
    rows = [
        {"name": name, "window": window, "repeat": repeat, "step": step, "ms": ms}
        for name, windows in (("vanilla", vanilla), ("policy", policy))
        for window, repeats in enumerate(windows)
        for repeat, steps in enumerate(repeats)
        for step, ms in enumerate(steps)
    ]
    return pd.DataFrame(rows, columns=["name", "window", "repeat", "step", "ms"])


def test_a_step_is_the_median_of_its_window() -> None:
    timing = _timing([[[1.0, 3.0], [2.0, 99.0]], [[4.0, 4.0], [4.0, 4.0]]], [])
    assert step_ms_per_window(timing, "vanilla").tolist() == [2.5, 4.0]
    estimate = latency.mean_step(np.array([2.0, 4.0]))
    assert estimate.value == 3.0 and estimate.high - 3.0 == pytest.approx(12.706, rel=1e-4)


def test_windows_pair_step_by_step() -> None:
    """One step in four took 99: neither the ratio nor the time of its window knows."""
    timing = _timing(
        [[[2.0, 2.0], [2.0, 99.0]], [[8.0, 8.0], [8.0, 8.0]]], [[[1.0, 1.0], [1.0, 1.0]], [[2.0, 2.0]] * 2]
    )
    assert window_pairs(timing).tolist() == [[2.0, 1.0], [8.0, 2.0]]
    assert latency.speedup(window_pairs(timing)).value == pytest.approx(10 / 3)
    assert not len(window_pairs(_timing([[[2.0]]], [])))


def test_cells_of_before_there_were_windows_pair_by_repeat() -> None:
    timing = _timing([[[2.0], [4.0], [9.0]]], [[[1.0], [2.0]]]).drop(columns="window")
    assert window_pairs(timing).tolist() == [[2.0, 1.0], [4.0, 2.0]]
    assert step_ms_per_window(timing, "vanilla").tolist() == [2.0, 4.0, 9.0]


windows = st.lists(
    st.lists(st.lists(st.floats(0.5, 9), min_size=2, max_size=2), min_size=1, max_size=3), min_size=2, max_size=4
)


@settings(max_examples=25)
@given(windows, st.data())
def test_what_stops_the_timing_is_what_is_shown(vanilla: list[list[list[float]]], data: st.DataObject) -> None:
    """The engine, which has no pandas, takes the same pair of times of each window."""
    policy = [[[data.draw(st.floats(0.5, 9)) for _ in steps] for steps in repeats] for repeats in vanilla]
    timing = _timing(vanilla, policy)
    rows = [StepTime(*row, active_experts=1.0) for row in timing.itertuples(index=False, name=None)]
    assert np.allclose(pairs_of(rows, "policy"), window_pairs(timing))
    shown = headline(timing, "policy")
    assert shown["speedup"] == pytest.approx(ratio_interval(pairs_of(rows, "policy"))[0])
    assert shown["speedup"] == pytest.approx(latency.speedup(window_pairs(timing)).value)


def test_trackers_show_the_tables_times(study: Path) -> None:
    table = results(load(study)).drop_duplicates("cell_id").set_index("cell_id")
    timed = 0
    for cell in read_cells(study):
        row, shown = table.loc[cell.info["cell_id"]], summary(cell)
        for name in ("step_ms", "vanilla_step_ms", "speedup"):
            assert shown.get(name, math.nan) == pytest.approx(row[name], nan_ok=True), name
        timed += "step_ms" in shown
    assert timed > 9


@given(st.lists(st.tuples(*(st.integers(0, 2) for _ in range(4)), st.booleans(), st.floats(1, 9)), max_size=40))
def test_cells_together_are_each_alone(rows: list[tuple[int, int, int, int, bool, float]]) -> None:
    """Whatever was timed of which: windows, repeats and steps may be missing on either side."""
    names = ["cell_id", "window", "repeat", "step", "own", "ms"]
    timing = pd.DataFrame(rows, columns=names).drop_duplicates(names[:-1])
    timing = timing.astype({"cell_id": str}).assign(name=np.where(timing["own"], "policy", "vanilla"))
    pairs = pairs_of_cells(timing)
    for cell, part in timing.groupby("cell_id"):
        assert pairs.pop(cell, np.empty((0, 2))).tolist() == window_pairs(part).tolist()
        for name in ("vanilla", "policy"):
            alone = step_ms_per_window(part, name).tolist()
            assert steps_of_cells(timing, name).get(cell, np.empty(0)).tolist() == alone
            of = part[part["name"] == name]
            by = "window" if of["window"].nunique() > 1 else "repeat"
            assert alone == [float(np.median(same["ms"])) for _, same in of.groupby(by, sort=True)]
    assert not pairs


def test_pairing_cancels_drift() -> None:
    drift = [1.0, 1.5, 2.0, 2.5, 3.0]
    speedup = latency.speedup(window_pairs(_timing([[[3 * d]] for d in drift], [[[2 * d]] for d in drift])))
    assert (speedup.low, speedup.value, speedup.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_covers_lanes_that_differ() -> None:
    """F2: every window of a lane agrees with itself, and lanes differ by 0.03 (sd): as often as it says, the interval
    over windows holds the run's speed-up; one lane's repeats never would."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        own = rng.normal(1.0, 0.03, 10)
        found = latency.speedup(np.stack([1.2 * own, np.ones(10)], axis=1))
        held += found.low <= 1.2 <= found.high
    assert 0.935 <= held / 2000 <= 0.985  # the wider of two intervals


def test_geometric_mean_over_tasks() -> None:
    two, eight = Estimate(value=2.0, se=0.1, df=9), Estimate(value=8.0, se=0.4, df=4)
    found = latency.geometric_mean([two, eight])
    assert found.value == pytest.approx(4.0) and found.df == 4
    assert math.log(found.high / 4.0) == pytest.approx(2.7764 * math.hypot(0.05, 0.05) / 2, rel=1e-4)
    assert latency.geometric_mean([two, Estimate(value=8.0)]).low is None
    with pytest.raises(ValueError, match="at least one"):
        latency.geometric_mean([])


def test_median_and_its_bootstrap() -> None:
    estimate = latency.median([1.0, 2.0, 3.0, 4.0, 100.0], seed=1)
    # P(median of a resample is the smallest) = P(Binomial(5, 1/5) >= 3) = 5.8 %: the 2.5 % quantile is the smallest
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((3.0, 1.0, 100.0))
    assert latency.median([2.5]).low is None
