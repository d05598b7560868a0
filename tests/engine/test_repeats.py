"""When the warm-up ends and when the repeats do, on scripted times; the interval that decides, against brute force."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, product
from itertools import repeat as forever
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.engine.timing.repeats import MAX_WARMUP, SETTLED, is_narrow, median_interval, repeat, settled, warm_up

MS = st.floats(0.1, 100.0)


def turns(*rounds_ms: float, then: float | None = None) -> Callable[[], list[float]]:
    """A subject whose rounds take these times a step; after them always `then`."""
    script: Iterable[float] = chain(rounds_ms, forever(then)) if then is not None else rounds_ms
    rounds = iter(script)
    return lambda: [next(rounds)] * 3


@pytest.mark.parametrize(
    "vanilla,rounds",
    [
        ([4.0, 4.1], 2),  # nothing to warm up
        ([90.0, 4.0, 4.0], 3),  # the first compiles
        ([5.0, 4.6, 4.2, 3.9, 3.8], 5),  # ever faster, until it is not
        ([4.0, 4.4, 4.8, 5.2, 5.3], 5),  # throttled
        ([4.0, 4.5, 4.2], 3),  # restless
    ],
)
def test_the_warm_up_ends_with_the_trend(vanilla: list[float], rounds: int) -> None:
    times, stable = warm_up({"vanilla": turns(*vanilla, 1.0), "x": turns(then=3.0)})
    assert stable
    assert times == {"vanilla": [[ms] * 3 for ms in vanilla], "x": [[3.0] * 3] * rounds}


def test_it_waits_for_the_last_of_the_subjects() -> None:
    times, stable = warm_up({"vanilla": turns(then=4.0), "x": turns(9.0, 8.0, 7.0, then=6.0)})
    assert stable and [steps[0] for steps in times["x"]] == [9.0, 8.0, 7.0, 6.0, 6.0] and len(times["vanilla"]) == 5


def test_one_disturbed_step_does_not_prolong_it() -> None:
    rounds = iter([[4.0, 4.0, 4.0], [4.0, 4.0, 400.0]])
    assert warm_up({"vanilla": lambda: next(rounds)})[1]


def test_what_never_settles_is_cut_off_and_said() -> None:
    times, stable = warm_up({"vanilla": turns(then=4.0), "x": turns(*(9.0 * 0.9**r for r in range(99)))})
    assert not stable
    assert len(times["vanilla"]) == len(times["x"]) == MAX_WARMUP


@given(st.lists(MS, min_size=2, max_size=12))
def test_settled_means_no_new_record(rounds: list[float]) -> None:
    *before, newest = rounds
    if min(before) <= newest <= max(before):
        assert settled(rounds)
    if newest > max(before) * (1 + 2 * SETTLED) or newest < min(before) / (1 + 2 * SETTLED):
        assert not settled(rounds)
    assert settled([*rounds, newest])
    assert not settled(rounds[:1])


def test_the_minimum_is_enough_for_steady_times() -> None:
    times, reached = repeat(
        {"vanilla": turns(then=4.0), "x": turns(then=2.0)}, repeats=3, max_repeats=9, precision=0.01
    )
    assert reached and {name: len(rounds) for name, rounds in times.items()} == {"vanilla": 3, "x": 3}


def test_repeats_go_on_until_the_last_policy_is_known() -> None:
    """One value on either side is within the interval of few repeats, and left out by that of more."""
    restless = turns(2.2, 1.8, then=2.0)
    subjects = {"vanilla": turns(then=4.0), "steady": turns(then=3.0), "restless": restless}
    times, reached = repeat(subjects, repeats=2, max_repeats=25, precision=0.02)
    done = len(times["vanilla"])
    ratios = [4.0 / steps[0] for steps in times["restless"]]
    assert reached and 5 < done < 25
    assert is_narrow(median_interval(ratios), 0.02) and not is_narrow(median_interval(ratios[:-1]), 0.02)


def test_the_cap_is_a_cap() -> None:
    restless = turns(*(2.0 + r % 2 for r in range(99)))
    times, reached = repeat({"vanilla": turns(then=4.0), "x": restless}, repeats=2, max_repeats=6, precision=0.02)
    assert not reached and [len(rounds) for rounds in times.values()] == [6, 6]


def test_a_single_repeat_knows_no_precision() -> None:
    steady = {"vanilla": turns(then=4.0), "x": turns(then=2.0)}
    assert not repeat(steady, repeats=1, max_repeats=1, precision=0.5)[1]
    times, reached = repeat(steady, repeats=1, max_repeats=9, precision=0.5)
    assert reached and len(times["x"]) == 2


def test_vanilla_alone_does_the_minimum() -> None:
    times, reached = repeat({"vanilla": turns(1.0, 9.0, 4.0)}, repeats=3, max_repeats=9, precision=0.02)
    assert reached and len(times["vanilla"]) == 3


@given(st.integers(1, 5), st.integers(1, 12))
def test_every_subject_has_every_place_equally_often(subjects: int, rounds: int) -> None:
    order: list[int] = []

    def turn(name: int) -> Callable[[], list[float]]:
        def take() -> list[float]:
            order.append(name)
            return [1.0 + 0.5 * (len(order) % 7)]

        return take

    repeat({str(name): turn(name) for name in range(subjects)}, repeats=rounds, max_repeats=rounds, precision=0.01)
    played = [order[start : start + subjects] for start in range(0, len(order), subjects)]
    assert len(played) == rounds and all(sorted(each) == list(range(subjects)) for each in played)
    for place in range(subjects):
        counts = [[each[place] for each in played].count(name) for name in range(subjects)]
        assert max(counts) - min(counts) <= 1


@given(st.lists(MS, min_size=3, max_size=40), st.integers(1, 12), st.integers(0, 8), st.sampled_from([0.01, 0.1, 0.5]))
def test_it_stops_at_the_first_narrow_interval_or_the_cap(
    own: list[float], least: int, more: int, precision: float
) -> None:
    own = own + [own[-1]] * 20
    times, reached = repeat(
        {"vanilla": turns(then=7.0), "x": turns(*own)}, repeats=least, max_repeats=least + more, precision=precision
    )
    narrow = [
        done
        for done in range(least, least + more + 1)
        if is_narrow(median_interval([7.0 / ms for ms in own[:done]]), precision)
    ]
    assert len(times["x"]) == len(times["vanilla"]) == (narrow[0] if narrow else least + more)
    assert reached == bool(narrow)


@given(st.lists(MS | st.sampled_from([1.0, 2.0]), min_size=2, max_size=5))
def test_the_interval_is_that_of_all_resamples(values: list[float]) -> None:
    medians = sorted(median(draw) for draw in product(values, repeat=len(values)))
    low = next(m for k, m in enumerate(medians, 1) if 40 * k >= len(medians))
    high = next(m for k, m in enumerate(medians, 1) if 40 * k >= 39 * len(medians))
    assert median_interval(values) == (median(values), low, high)


@given(st.lists(MS, min_size=2, max_size=30))
def test_the_interval_holds_the_median_and_knows_no_order(values: list[float]) -> None:
    centre, low, high = median_interval(values)
    assert low is not None and high is not None
    assert min(values) <= low <= centre <= high <= max(values)
    assert median_interval(values[::-1]) == (centre, low, high)
    doubled = median_interval([2 * value for value in values])
    assert doubled == (2 * centre, 2 * low, 2 * high)
