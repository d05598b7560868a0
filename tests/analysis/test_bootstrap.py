"""BCa intervals against scipy's on the same replicates, and a published example."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis import statistics

SPATIAL = np.array(
    [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41], dtype=float
)
"""Efron and Tibshirani (1993), table 14.1, test A: variance (by n) 171.5, 90 % BCa interval (115.8, 259.6)."""


def variance(counts_RG: np.ndarray, values_G: np.ndarray) -> np.ndarray:
    total = counts_RG.sum(axis=1)
    mean = counts_RG @ values_G / total
    return counts_RG @ values_G**2 / total - mean**2


def left_out(values: np.ndarray) -> np.ndarray:
    return variance(1 - np.eye(len(values)), values)


def test_spatial_data() -> None:
    replicates = variance(statistics.lane_draws(26, 40000, seed=0), SPATIAL)
    low, high = statistics.bca(SPATIAL.var(), replicates, left_out(SPATIAL), level=0.90, expanded=False)
    assert SPATIAL.var() == pytest.approx(171.5, abs=0.05)
    assert (low, high) == (pytest.approx(115.8, abs=1.5), pytest.approx(259.6, abs=3))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=5, max_size=30).filter(lambda v: np.var(v) > 1), st.integers(0, 99))
def test_equals_scipy_on_the_same_replicates(numbers: list[int], seed: int) -> None:
    values = np.array(numbers, dtype=float)
    assume(np.ptp(left_out(values)) > 1e-9)  # scipy has no acceleration where the jackknife has no spread
    theirs = stats.bootstrap(
        (values,), lambda x, axis: np.var(x, axis=axis), method="BCa", n_resamples=400, rng=seed, vectorized=True
    )
    ours = statistics.bca(values.var(), theirs.bootstrap_distribution, left_out(values), expanded=False)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), rel=1e-6)


def test_few_lanes_are_not_trusted() -> None:
    """Expanded by Student's t: of four lanes it takes in all that they can be resampled to."""
    values = np.array([1.0, 2.0, 4.0, 5.0])
    replicates = statistics.lane_draws(4, 20000, seed=1) @ values / 4
    jackknife = (values.sum() - values) / 3
    plain = statistics.bca(3.0, replicates, jackknife, expanded=False)
    wide = statistics.bca(3.0, replicates, jackknife)
    exact = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert plain[1] - plain[0] < 0.6 * (exact[1] - exact[0])
    assert wide == (pytest.approx(1.0, abs=0.3), pytest.approx(5.0, abs=0.3))


def test_draws_are_resamples() -> None:
    draws = statistics.lane_draws(7, 100, seed=3)
    assert draws.shape == (100, 7) and (draws.sum(axis=1) == 7).all()
    assert (draws == statistics.lane_draws(7, 100, seed=3)).all()
    assert (draws != statistics.lane_draws(7, 100, seed=4)).any()


def test_a_statistic_that_no_replicate_undercuts_keeps_finite_ends() -> None:
    replicates = np.concatenate([np.zeros(999), [1.0]])
    low, high = statistics.bca(0.0, replicates, np.array([0.0, 0.0, 0.5, 0.0]))
    assert 0.0 <= low <= high <= 1.0
