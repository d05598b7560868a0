"""TPOT and speed-up of interleaved repeats."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import latency


def _timing(vanilla: list[list[float]], policy: list[list[float]]) -> pd.DataFrame:
    rows = [
        {"name": name, "repeat": repeat, "step": step, "ms": ms}
        for name, repeats in (("vanilla", vanilla), ("policy", policy))
        for repeat, steps in enumerate(repeats)
        for step, ms in enumerate(steps)
    ]
    return pd.DataFrame(rows)


def test_tpot_is_the_mean_over_steps_of_each_repeat() -> None:
    timing = _timing([[1.0, 3.0], [4.0, 4.0]], [[1.0, 1.0], [2.0, 1.0]])
    assert latency.tpot_per_repeat(timing, "vanilla").tolist() == [2.0, 4.0]
    assert latency.tpot_per_repeat(timing, "policy").tolist() == [1.0, 1.5]


def test_speedup_pairs_by_repeat() -> None:
    timing = _timing([[2.0], [4.0], [9.0]], [[1.0], [2.0]])
    assert latency.speedup_per_repeat(timing).tolist() == [2.0, 2.0]
    assert latency.speedup_per_repeat(_timing([[2.0]], [])).size == 0


def test_pairing_cancels_drift() -> None:
    drift = [1.0, 1.5, 2.0, 2.5, 3.0]
    timing = _timing([[3 * d] for d in drift], [[2 * d] for d in drift])
    speedup = latency.median(latency.speedup_per_repeat(timing))
    assert (speedup.low, speedup.value, speedup.high) == pytest.approx((1.5, 1.5, 1.5))


def test_median_and_its_bootstrap() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    estimate = latency.median(values, seed=1)
    assert estimate.value == pytest.approx(3.0)
    assert estimate == latency.median(values, seed=1)
    # P(median of a resample is the smallest) = P(Binomial(5, 1/5) >= 3) = 5.8 %: the 2.5 % quantile is the smallest
    assert (estimate.low, estimate.high) == pytest.approx((1.0, 100.0))


def test_one_repeat_has_no_interval() -> None:
    assert latency.median([2.5]).value == 2.5
    assert latency.median([2.5]).low is None
    assert latency.geometric_mean_of_medians([np.array([2.0, 2.0]), np.array([8.0])]).low is None


def test_geometric_mean_over_tasks() -> None:
    estimate = latency.geometric_mean_of_medians([np.array([2.0, 2.0, 2.0]), np.array([8.0, 8.0])])
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((4.0, 4.0, 4.0))
    with pytest.raises(ValueError, match="at least one value"):
        latency.geometric_mean_of_medians([np.empty(0)])
