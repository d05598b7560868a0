"""Estimates against closed forms and examples worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis import statistics
from analysis.statistics import Estimate

scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=30)


@given(scores)
def test_singleton_clusters_give_the_one_sample_t_interval(values: list[float]) -> None:
    estimate = statistics.ratio_of_sums(values, np.ones(len(values)))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95) if np.ptp(values) else (values[0], values[0])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert estimate.df == len(values) - 1


@given(scores, st.integers(2, 4))
def test_copies_in_one_cluster_add_nothing(values: list[float], copies: int) -> None:
    once = statistics.ratio_of_sums(values, np.ones(len(values)))
    repeated = statistics.ratio_of_sums(np.multiply(values, copies), np.full(len(values), copies))
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))


def test_clustered_mean_worked_by_hand() -> None:
    # clusters (1, 1, 0) and (1, 0): mean 3/5, residual sums 1/5 and -1/5; variance 2/1 * (2/25) / 25
    estimate = statistics.mean([1, 1, 0, 1, 0], [7, 7, 7, 9, 9])
    se = math.sqrt(2 * (2 / 25)) / 5
    assert estimate.value == pytest.approx(0.6)
    assert estimate.se == pytest.approx(se)
    unclipped = statistics.ratio_of_sums([2, 1], [3, 2])
    assert unclipped.high == pytest.approx(0.6 + stats.t.ppf(0.975, 1) * se)
    assert estimate.low == 0.0
    assert estimate.high == 1.0


def test_fewer_than_two_clusters_have_no_interval() -> None:
    assert statistics.mean([1, 0, 1, 1], [3, 3, 3, 3]) == Estimate(value=0.75)
    assert statistics.paired_difference([1, 0], [0, 0], [1, 1]) == Estimate(value=0.5)


def test_no_error_is_not_certainty() -> None:
    estimate = statistics.mean(np.ones(64), np.arange(64) // 4)
    z = stats.norm.ppf(0.975)
    assert estimate.value == 1.0
    assert estimate.low == pytest.approx(1 / (1 + z**2 / 64))  # Wilson at 64 of 64
    assert estimate.high == pytest.approx(1.0)
    assert estimate.se is not None and estimate.se > 0


def test_equal_clusters_of_shares_get_wilson_too() -> None:
    estimate = statistics.mean([1, 0, 1, 0], [0, 0, 1, 1])
    assert (estimate.low, estimate.high) == pytest.approx(statistics.wilson(2, 4))


def test_equal_real_scores_have_no_interval() -> None:
    assert statistics.mean([0.3, 0.3, 0.3], [0, 1, 2]) == Estimate(value=pytest.approx(0.3))


def test_paired_difference_is_the_mean_of_differences() -> None:
    policy, vanilla, lanes = [1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 0, 1], [0, 0, 1, 1, 2, 2]
    estimate = statistics.paired_difference(policy, vanilla, lanes)
    # lane sums -1, -1, 0 of two documents each: equal sizes reduce to a t interval over lane means
    expected = stats.ttest_1samp([-0.5, -0.5, 0.0], 0.0).confidence_interval(0.95)
    assert estimate.value == pytest.approx(-1 / 3)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected))


def test_identical_answers_are_bounded_by_their_number() -> None:
    few = statistics.paired_difference(np.ones(16), np.ones(16), np.arange(16) // 4)
    many = statistics.paired_difference(np.ones(160), np.ones(160), np.arange(160) // 4)
    assert few.value == 0.0
    assert few.high == pytest.approx(1.959964 * math.sqrt(2) / 18, rel=1e-6)
    assert few.low == -few.high
    assert many.high < few.high / 5


def test_few_changes_get_bonett_and_prices_width() -> None:
    vanilla = np.ones(400)
    policy = vanilla.copy()
    policy[::200] = 0  # two of 400, in lanes of one: the t interval's width is that of two documents
    estimate = statistics.paired_difference(policy, vanilla, np.arange(400))
    worse, better, padded = (2 + 1) / 402, (0 + 1) / 402, 402
    half = stats.norm.ppf(0.975) * math.sqrt((worse + better - (worse - better) ** 2) / padded)
    assert estimate.value == -0.005
    assert estimate.high == pytest.approx(-0.005 + half)
    assert estimate.df == math.inf


def test_many_changes_keep_the_clustered_interval() -> None:
    rng = np.random.default_rng(0)
    policy, lanes = np.repeat(rng.random(20) < 0.5, 10).astype(float), np.repeat(np.arange(20), 10)
    estimate = statistics.paired_difference(policy, 1 - policy, lanes)
    plain = statistics.ratio_of_sums(*statistics.cluster_sums(2 * policy - 1, lanes))
    assert estimate == plain


def test_the_floor_is_of_the_size_of_the_changes() -> None:
    def half(size: float) -> float:
        changes = np.zeros(100)
        changes[3] = size
        estimate = statistics.floored(statistics.ratio_of_sums(changes, np.ones(100)), changes)
        assert estimate.low is not None and estimate.high is not None
        return estimate.high - estimate.low

    assert half(0.25) == pytest.approx(half(1.0) / 4)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=4, max_size=40), st.integers(1, 4))
def test_the_floor_never_narrows(changes: list[float], lane: int) -> None:
    plain = statistics.ratio_of_sums(*statistics.cluster_sums(changes, np.arange(len(changes)) // lane))
    after = statistics.floored(plain, changes)
    if plain.low is None:
        assert after == plain
    else:
        assert after.low is not None and after.low <= plain.low + 1e-12


def test_macro_of_one_is_itself_and_of_equals_narrows() -> None:
    one = statistics.t_interval(2.0, 0.5, 7)
    assert statistics.macro_mean([one]).low == pytest.approx(one.low)
    four = statistics.macro_mean([one] * 4)
    assert four.value == pytest.approx(2.0)
    assert four.se == pytest.approx(0.5 / 2)
    assert four.df == pytest.approx(28)


def test_macro_of_infinite_degrees_is_normal() -> None:
    one = statistics.unchanged(64)
    both = statistics.macro_mean([one, one])
    assert both.df == math.inf
    assert both.high == pytest.approx(1.959964 * math.sqrt(2) / 66 / math.sqrt(2), rel=1e-6)


def test_macro_lacks_an_interval_if_a_part_does() -> None:
    assert statistics.macro_mean([statistics.t_interval(1.0, 0.5, 3), Estimate(value=3.0)]) == Estimate(value=2.0)


def test_scaled_keeps_degrees_of_freedom() -> None:
    scaled = statistics.t_interval(0.5, 0.1, 4).scaled(100)
    assert scaled.value == 50.0
    assert scaled.se == pytest.approx(10.0)
    assert scaled.df == 4
