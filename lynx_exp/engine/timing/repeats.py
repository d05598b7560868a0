"""When timing may stop: rounds until they settle, then repeats until every speed-up is known well enough.

A *round* gives every subject one turn, and a turn is a run of decode steps. No clock and no model in here: whoever
calls says how a turn is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from math import comb, sqrt
from statistics import median

Times = dict[str, list[list[float]]]
"""Name -> round -> step -> milliseconds."""

Turn = Callable[[], list[float]]
"""Runs one subject once; milliseconds of each step."""

Interval = tuple[float, float | None, float | None]
"""(median, low, high) at 95 %; the bounds are None with a single repeat."""

SETTLED = 0.03
"""Relative: how far a round may leave the range of the rounds before it and still be no trend."""

MAX_WARMUP = 10
"""Rounds. What speeds up for longer than this is not warming up."""


def warm_up(subjects: Mapping[str, Turn]) -> tuple[Times, bool]:
    """Rounds that do not count, until they are stable: (their times, whether they became stable in `MAX_WARMUP`)."""
    times: Times = {name: [] for name in subjects}
    for number in range(MAX_WARMUP):
        _round(subjects, number, times)
        if all(settled([median(steps) for steps in rounds]) for rounds in times.values()):
            return times, True
    return times, False


def settled(rounds_ms: Sequence[float]) -> bool:
    """Whether the newest of a subject's rounds (their median steps, ms) lies in the range of those before it, give or
    take `SETTLED`.

    Warming up, like throttling, sets a new record every round. Noise soon falls between the values that it has shown
    before, so a restless machine does not warm up for ever, as it would if two rounds in a row had to agree.
    """
    *before, newest = rounds_ms
    return bool(before) and min(before) / (1 + SETTLED) <= newest <= max(before) * (1 + SETTLED)


def repeat(subjects: Mapping[str, Turn], *, repeats: int, max_repeats: int, precision: float) -> tuple[Times, bool]:
    """Rounds that count: at least `repeats`, then until the speed-up of every subject over the first one has a 95 %
    interval of at most +- `precision` relative to its median, or `max_repeats` are done. (Times, whether all have.)

    That is optional stopping, on the interval that is reported. It looks at the interval's width, never at which side
    of 1 it lies on: a policy that seems fast gets no other number of repeats than one that seems as much slower, so the
    speed-up is drawn neither towards 1 nor away from it, and no result can be waited for. What it costs is that a calm
    spell ends a run early: simulated with normal noise of 1 to 5 %, 7 to 25 repeats and 2 %, the interval covers the
    truth in 86 to 88 % of runs, against 87 % with 7 repeats always (a bootstrap of 7 is too narrow by itself) and 95 %
    with 25.
    """
    baseline, *others = subjects
    times: Times = {name: [] for name in subjects}
    reached = False
    for number in range(max_repeats):
        _round(subjects, number, times)
        # no look before: a few repeats have an interval by luck alone
        if number + 1 >= repeats:
            intervals = [median_interval(paired_ratios(times[baseline], times[name])) for name in others]
            reached = all(is_narrow(interval, precision) for interval in intervals)
            if reached:
                break
    return times, reached


def _round(subjects: Mapping[str, Turn], number: int, times: Times) -> None:
    """The first turn goes to another subject each round, so that none has the same place every time."""
    names = list(subjects)
    for turn in range(len(names)):
        name = names[(number + turn) % len(names)]
        times[name].append(subjects[name]())


def paired_ratios(baseline: Sequence[Sequence[float]], own: Sequence[Sequence[float]]) -> list[float]:
    """The baseline's time over the subject's, step by step; the median step of each repeat, since a step that the
    machine disturbed says nothing about the policy."""
    return [
        median(b / o for b, o in zip(baseline_steps, own_steps, strict=True))
        for baseline_steps, own_steps in zip(baseline, own, strict=True)
    ]


def is_narrow(interval: Interval, precision: float) -> bool:
    """Whether the interval's half-width, relative to the median, is at most `precision`; never without an interval."""
    centre, low, high = interval
    return low is not None and high is not None and high - low <= 2 * precision * centre


def window_times(baseline: Sequence[Sequence[float]], own: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(the baseline's time, the subject's own) of one window, from its repeats' steps in milliseconds: the subject's
    median step, and that times the median of the paired ratios, which a step that the machine disturbed cannot move."""
    (ratio,) = paired_ratios([list(chain(*baseline))], [list(chain(*own))])
    typical = median(chain(*own))
    return ratio * typical, typical


def ratio_interval(pairs: Sequence[tuple[float, float]]) -> Interval:
    """Of the sums of two times over windows, the first over the second, with its 95 % interval over windows: a ratio
    estimate, its variance from the windows' residuals (Cochran, Sampling Techniques, 1977, section 6.3), by the t
    distribution; (ratio, None, None) of one window."""
    n, total = len(pairs), sum(own for _, own in pairs)
    ratio = sum(baseline for baseline, _ in pairs) / total
    if n < 2:
        return ratio, None, None
    squares = sum((baseline - ratio * own) ** 2 for baseline, own in pairs)
    half = t_quantile(n - 1) * sqrt(squares * n / (n - 1)) / total
    return ratio, ratio - half, ratio + half


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, from 3 on to 1 % by the expansion in powers
    of 1 / degrees (Abramowitz and Stegun, 26.7.5)."""
    if degrees < 3:
        return (12.706, 4.303)[degrees - 1]
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def median_interval(values: Sequence[float]) -> Interval:
    """Median and the percentile interval of its bootstrap: over all n^n resamples instead of a draw of them."""
    centre, n = median(values), len(values)
    if n < 2:
        return centre, None, None
    ordered = sorted(values)
    medians = sorted(((ordered[i] + ordered[j]) / 2, count) for i, j, count in _resampled(n))
    bounds = []
    for numerator in (1, 39):  # of 40: 2.5 and 97.5 %
        below = 0
        for value, count in medians:
            below += count
            if 40 * below >= numerator * n**n:
                bounds.append(value)
                break
    return centre, bounds[0], bounds[1]


@cache
def _resampled(n: int) -> tuple[tuple[int, int, int], ...]:
    """(i, j, how many of the n^n resamples of n ordered values have values i and j in the middle); i = j for odd n."""
    middle = (n + 1) // 2
    # resamples whose middle-th value (counted from 1) is one of the first k values
    first = [sum(comb(n, m) * k**m * (n - k) ** (n - m) for m in range(middle, n + 1)) for k in range(n + 1)]
    at = [first[k + 1] - first[k] for k in range(n)]
    if n % 2:
        return tuple((i, i, count) for i, count in enumerate(at))
    pairs = []
    for i in range(n):
        # half of the draws at most i, one of them i; the other half at least j, one of them j
        lower = comb(n, middle) * ((i + 1) ** middle - i**middle)
        apart = [(i, j, lower * ((n - j) ** middle - (n - j - 1) ** middle)) for j in range(i + 1, n)]
        pairs += [(i, i, at[i] - sum(count for *_, count in apart)), *apart]
    return tuple(pairs)
