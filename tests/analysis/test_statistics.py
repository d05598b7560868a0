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
from analysis.statistics.crossed import numbered

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
    unclipped = statistics.ratio_of_sums([2, 1], [3, 2])
    se = math.sqrt(2 * (2 / 25)) / 5
    assert (unclipped.value, unclipped.se) == (pytest.approx(0.6), pytest.approx(se))
    assert unclipped.high == pytest.approx(0.6 + stats.t.ppf(0.975, 1) * se)
    estimate = statistics.mean([1, 1, 0, 1, 0], [7, 7, 7, 9, 9])
    effective = 0.6 * 0.4 / (se * stats.t.ppf(0.975, 1) / stats.norm.ppf(0.975)) ** 2
    ends = stats.beta.ppf(
        [0.025, 0.975], [0.6 * effective, 0.6 * effective + 1], [0.4 * effective + 1, 0.4 * effective]
    )
    assert (estimate.low, estimate.high) == pytest.approx(tuple(ends))
    assert estimate.value == pytest.approx(0.6)


@given(st.integers(1, 40), st.integers(0, 40))
def test_single_documents_get_no_less_than_the_exact_binomial_interval(trials: int, right: int) -> None:
    scores = np.arange(trials + 1) < right
    estimate = statistics.mean(scores.astype(float), np.arange(trials + 1))
    exact = stats.binomtest(int(scores.sum()), trials + 1).proportion_ci(0.95, method="exact")
    assert estimate.low is not None and estimate.high is not None
    assert 0 <= estimate.low <= exact.low + 1e-12 and exact.high - 1e-12 <= estimate.high <= 1


def test_fewer_than_two_clusters_have_no_interval() -> None:
    assert statistics.mean([1, 0, 1, 1], [3, 3, 3, 3]) == Estimate(value=0.75)
    assert statistics.paired_difference([1, 0], [0, 0], [1, 1]) == Estimate(value=0.5)


def test_no_error_is_not_certainty() -> None:
    estimate = statistics.mean(np.ones(64), np.arange(64) // 4)
    assert estimate.value == estimate.high == 1.0
    assert estimate.low == pytest.approx(0.025 ** (1 / 64))  # Clopper and Pearson at 64 of 64
    assert estimate.se is not None and estimate.se > 0
    alike = statistics.mean([0.3, 0.3, 0.3], [0, 1, 2])
    assert alike.low is not None and alike.low < 0.1, "three graded answers that agree are three answers"


def test_losses_of_one_size_have_garwoods_limits() -> None:
    for seen in range(30):
        low, high = statistics.gamma_limits(seen, seen, 1.0)
        assert low == pytest.approx(stats.chi2.ppf(0.025, 2 * seen) / 2 if seen else 0.0)
        assert high == pytest.approx(stats.chi2.ppf(0.975, 2 * seen + 2) / 2)


def test_paired_difference_worked_by_hand() -> None:
    # 2 of 400 lost, none gained, in lanes of one: design effect as of Bonett and Price, (2 + 2 - 4/402) / 4
    vanilla = np.ones(400)
    policy = vanilla.copy()
    policy[::200] = 0
    estimate = statistics.paired_difference(policy, vanilla, np.arange(400))
    few = (stats.t.ppf(0.975, 399) / stats.norm.ppf(0.975)) ** 2
    clustered = (400 / 399 * (2 - 4 / 400) * few + 2) / 4
    effect = max(clustered, (4 - 4 / 402) / 4, 400 / 399 * (2 - 4 / 400) / 2)
    low, high = statistics.gamma_limits(2, 2 * effect, max(effect, 1.0))
    assert estimate.value == -0.005
    assert estimate.low == pytest.approx(-high / 400)
    nothing = stats.chi2.ppf(0.975, 2) / 2 * max(effect, 1.0)
    assert estimate.high == pytest.approx(min(-0.005 + math.hypot(nothing, 2 - low) / 400, 1 - 0.025 ** (1 / 400)))


def test_identical_answers_are_bounded_by_their_number() -> None:
    half = np.tile([0.0, 1.0], 800)
    few, many = (statistics.paired_difference(half[:n], half[:n], np.arange(n)) for n in (16, 1600))
    assert few.value == 0.0
    assert few.high == pytest.approx(-math.log(0.025) / 16)
    assert few.low == -few.high
    assert many.high == pytest.approx(few.high / 100), "nothing seen shrinks with the documents, not with their root"


def test_vanilla_cannot_lose_more_than_it_has() -> None:
    """A loss of 94 of 100 points: an interval to -113.6 was printed once."""
    vanilla = (np.arange(64) > 3).astype(float)
    estimate = statistics.paired_difference(np.zeros(64), vanilla, np.arange(64) // 16).scaled(100)
    most = statistics.mean(vanilla, np.arange(64) // 16).scaled(100).high
    assert estimate.low is not None and estimate.high is not None and most is not None
    assert -100 <= -most <= estimate.low < estimate.high < -70
    assert statistics.p_value(estimate) < 0.01


def test_many_changes_have_the_clustered_width() -> None:
    rng = np.random.default_rng(0)
    changes, lanes = rng.choice([-1.0, 0.0, 1.0], 6400) + 0.0, np.repeat(np.arange(400), 16)
    changes[rng.permutation(400)[:100].repeat(16) * 16 + np.tile(np.arange(16), 100)] = 0  # lanes unlike
    estimate = statistics.paired_difference(np.maximum(changes, 0), np.maximum(-changes, 0), lanes)
    plain = statistics.ratio_of_sums(*statistics.cluster_sums(changes, lanes))
    assert estimate.se == pytest.approx(plain.se, rel=0.1)


def _interval(changes: list[float]) -> Estimate:
    full = np.zeros(200)
    full[: len(changes)] = changes
    return statistics.mean_change(float(full.mean()), full, statistics.spread(full - full.mean(), *_single(200)))


def _single(documents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each document in a lane of its own, one plan."""
    return np.arange(documents), np.arange(documents), np.zeros(documents, int)


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=30))
def test_nothing_changed_is_never_worse_than_a_loss(losses: list[float]) -> None:
    """Of any sizes: the end of the interval that `recommend` looks at."""
    nothing, something = _interval([]), _interval([-loss for loss in losses])
    assert nothing.low is not None and something.low is not None and nothing.low >= something.low - 1e-12
    assert statistics.tost(nothing, 0.03) <= statistics.tost(something, 0.03) + 1e-9


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=30))
def test_small_changes_do_not_rule_out_a_large_one(losses: list[float]) -> None:
    """The floor once shrank with the sizes seen, to +-0.03 points."""
    estimate = _interval([-loss / 100 for loss in losses])
    assert estimate.low is not None and estimate.low < 0.99 * math.log(0.025) / 200


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=4, max_size=40), st.integers(1, 2))
def test_gains_mirror_losses(changes: list[float], lane: int) -> None:
    lanes = np.arange(len(changes)) // lane
    there, back = (
        statistics.mean_change(
            float(d.mean()), d, statistics.spread(d - d.mean(), _single(len(d))[0], lanes, 0 * lanes)
        )
        for d in (np.array(changes), -np.array(changes))
    )
    assert there.low is not None and back.high is not None and there.low == pytest.approx(-back.high)


def test_copies_of_a_plan_add_nothing() -> None:
    """Documents are the same in each plan: certainty does not come from asking them again."""
    rng = np.random.default_rng(1)
    changes, lanes = (rng.random(160) < 0.2).astype(float), np.arange(160) // 16
    once = statistics.paired_difference(1 - changes, np.ones(160), lanes)
    names = (np.tile(np.arange(160), 3), np.repeat(np.arange(3), 160))
    thrice = statistics.paired_difference(
        np.tile(1 - changes, 3), np.ones(480), np.concatenate([lanes + 100 * plan for plan in range(3)]), *names
    )
    assert thrice.value == pytest.approx(once.value)
    assert thrice.se is not None and once.se is not None and thrice.se > 0.8 * once.se


def test_plans_that_lanes_do_not_explain_are_few() -> None:
    residuals = np.repeat([-1.0, 0.0, 1.0], 32) + np.tile([0.01, -0.01], 48)
    lanes, plans = np.repeat(np.arange(12), 8), np.repeat(np.arange(3), 32)
    found = statistics.spread(residuals, np.tile(np.arange(32), 3), lanes, plans)
    assert found is not None and found.df == pytest.approx(2.0, abs=0.01)
    assert found.clustered == pytest.approx(np.var([-1, 0, 1], ddof=1) / 3, rel=0.01)


def test_macro_of_one_is_itself_and_of_equals_narrows() -> None:
    one = statistics.t_interval(2.0, 0.5, 7)
    assert statistics.macro_mean([one]).low == pytest.approx(one.low)
    four = statistics.macro_mean([one] * 4)
    assert four.value == pytest.approx(2.0)
    assert four.se == pytest.approx(0.5 / 2)
    assert four.df == pytest.approx(28)


def test_macro_of_infinite_degrees_is_normal() -> None:
    one = statistics.t_interval(0.0, 0.5, math.inf)
    both = statistics.macro_mean([one, one])
    assert both.df == math.inf
    assert both.high == pytest.approx(1.959964 * 0.5 / math.sqrt(2), rel=1e-6)


def test_arms_of_a_macro_mean_combine_by_side() -> None:
    skew = Estimate(value=-1.0, low=-4.0, high=0.0, se=1.0, df=math.inf, pad=1.0)
    both = statistics.macro_mean([skew, skew])
    assert (both.low, both.high) == (pytest.approx(-1 - 3 / math.sqrt(2)), pytest.approx(-1 + 1 / math.sqrt(2)))
    assert statistics.dependent_mean([skew, skew]).low == pytest.approx(-4.0)


def test_macro_lacks_an_interval_if_a_part_does() -> None:
    assert statistics.macro_mean([statistics.t_interval(1.0, 0.5, 3), Estimate(value=3.0)]) == Estimate(value=2.0)


def test_scaled_keeps_degrees_of_freedom() -> None:
    scaled = statistics.t_interval(0.5, 0.1, 4).scaled(100)
    assert scaled.value == 50.0
    assert scaled.se == pytest.approx(10.0)
    assert scaled.df == 4


@given(st.lists(st.one_of(st.integers(-3, 60), st.integers(0, 2**40)), max_size=30))
def test_names_are_numbered_as_numpy_does(names: list[int]) -> None:
    given = np.array(names, dtype=np.int64)
    assert numbered(given).tolist() == np.unique(given, return_inverse=True)[1].tolist()
    texts = given.astype(str)
    assert numbered(texts).tolist() == np.unique(texts, return_inverse=True)[1].tolist()
