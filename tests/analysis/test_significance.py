"""Tests, equivalence and sample sizes: closed forms and published examples."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from analysis import statistics
from analysis.statistics import Estimate

SLEEP = (
    np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]),
    np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]),
)
"""Student's (1908) hours of sleep under two drugs: t(9) = -4.0621, p = 0.002833; outside +-0.5: t(9) = -2.777."""


def sleep() -> Estimate:
    changes = SLEEP[0] - SLEEP[1]
    return statistics.ratio_of_sums(changes, np.ones(10))


def pairs(both: int, worse: int, better: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of (policy, vanilla)."""
    vanilla = np.repeat([1.0, 1.0, 0.0, 0.0], [both, worse, better, neither])
    policy = np.repeat([1.0, 0.0, 1.0, 0.0], [both, worse, better, neither])
    return policy, vanilla


def test_mcnemar_of_few_is_the_binomial_test() -> None:
    found = statistics.discordance(*pairs(59, 6, 16, 80))
    expected = 2 * sum(math.comb(22, k) for k in range(7)) / 2**22
    assert (found.worse, found.better) == (6, 16)
    assert found.p_value == pytest.approx(expected) == pytest.approx(0.0525, abs=1e-4)


def test_mcnemar_of_many_is_chi_squared_with_continuity() -> None:
    found = statistics.discordance(*pairs(101, 121, 59, 33))
    assert found.p_value == pytest.approx(stats.chi2.sf((121 - 59 - 1) ** 2 / (121 + 59), 1))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_that_of_statsmodels(worse: int, better: int) -> None:
    expected = mcnemar([[5, worse], [better, 0]], exact=worse + better < 25).pvalue if worse + better else 1.0
    assert statistics.discordance(*pairs(5, worse, better, 5)).p_value == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 500).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_is_that_of_scipy(seen: tuple[int, int]) -> None:
    expected = stats.binomtest(*seen).proportion_ci(0.95, method="wilson")
    assert statistics.wilson(*seen) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_mcnemar_has_an_answer_where_nothing_changed_and_none_for_graded_scores() -> None:
    assert statistics.discordance(*pairs(5, 0, 0, 5)).p_value == 1.0
    graded = statistics.discordance([0.5, 1.0], [0.25, 1.0])
    assert (graded.better, graded.worse) == (1, 0)
    assert math.isnan(graded.p_value)


def test_t_test_of_the_sleep_data() -> None:
    assert statistics.p_value(sleep()) == pytest.approx(0.002833, abs=5e-7)


def test_holm_worked_by_hand() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and never below the one before
    adjusted = statistics.holm([0.01, 0.04, math.nan, 0.03, 0.005])
    assert adjusted[[0, 1, 3, 4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(adjusted[2])
    assert np.isnan(statistics.holm([math.nan])).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_only_raises_and_keeps_the_order(given: list[float]) -> None:
    adjusted = statistics.holm(given)
    assert (adjusted >= np.array(given) - 1e-12).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(given, kind="stable")]) >= -1e-12).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(given: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gc, "collect", lambda: 0
        )  # which statsmodels calls each time: a second in a process of many tests
        expected = multipletests(given, method="holm")[1]
    assert statistics.holm(given) == pytest.approx(expected, rel=1e-12)


def test_tost_of_the_sleep_data() -> None:
    estimate = sleep()
    assert estimate.se is not None
    assert (estimate.value + 0.5) / estimate.se == pytest.approx(-2.777, abs=5e-4)
    assert statistics.tost(estimate, 0.5) == pytest.approx(stats.t.sf(-2.7766442, 9))


@given(st.floats(-3, 3), st.floats(0.01, 2), st.floats(1, 200), st.floats(0.1, 3))
def test_tost_is_the_ninety_percent_interval_inside_the_margin(
    value: float, se: float, df: float, margin: float
) -> None:
    estimate = statistics.t_interval(value, se, df)
    half = float(stats.t.ppf(0.95, df)) * se
    inside = -margin < value - half and value + half < margin
    clear = min(abs(abs(value) + half - margin), 1.0) > 1e-9
    if clear:
        assert (statistics.tost(estimate, margin) < 0.05) == inside


def test_nothing_can_be_said_without_a_standard_error() -> None:
    bare = Estimate(value=0.3)
    found = (statistics.p_value(bare), statistics.tost(bare, 1.0), statistics.documents_needed(bare, 9, 1.0))
    assert all(map(math.isnan, found))


@pytest.mark.parametrize("margin", [0.0, -1.0])
def test_a_margin_is_positive(margin: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        statistics.tost(sleep(), margin)
    with pytest.raises(ValueError, match="must be above 0"):
        statistics.documents_needed(sleep(), 10, margin)


def test_sample_size_is_the_textbook_formula() -> None:
    # one sample, sigma 10 %, margin 5 %, 5 % and 80 %: (1.645 + 1.282)^2 0.1^2 / 0.05^2 = 34.3, so 35
    # (Chow, Shao and Wang, Sample Size Calculations in Clinical Research, section 3.1)
    estimate = statistics.t_interval(0.0, 0.1 / math.sqrt(1000), math.inf)
    assert statistics.documents_needed(estimate, 1000, 0.05) == 35


@given(st.floats(0.05, 5), st.integers(4, 100), st.floats(0.5, 3))
def test_lanes_grow_with_the_documents(se: float, lanes: int, margin: float) -> None:
    """With the number named the planned half width is the margin; with one document less it is wider."""
    documents = 16 * lanes
    needed = statistics.documents_needed(statistics.t_interval(0.0, se, lanes - 1), documents, margin)

    def half_width(asked: float) -> float:
        df = max(lanes * asked / documents - 1, 1.0)
        return (stats.t.ppf(0.95, df) + stats.t.ppf(0.90, df)) * se * math.sqrt(documents / asked)

    assert half_width(needed) <= margin * (1 + 1e-6)
    assert needed == 1 or half_width(needed - 1) >= margin * (1 - 1e-6)
