"""Paired, interleaved timing, and the one line of JSON that every benchmark ends with."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from random import Random
from time import perf_counter
from typing import Any

_RESAMPLES = 2000


def interleave(subjects: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each subject in each of `repeats` rounds, after a warm-up; a round runs all, in rotating order."""
    for run in subjects.values():
        run()
    names = list(subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for turn in range(len(names)):
            name = names[(repeat + turn) % len(names)]
            start = perf_counter()
            subjects[name]()
            seconds[name].append(perf_counter() - start)
    return seconds


def paired_ratio(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high) of the ratio `slow` / `fast` round by round; bootstrap interval at 95 %."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    rng = Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    return statistics.median(ratios), medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES) - 1]


def report(benchmark: str, goal: float, headline: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> None:
    """Print the JSON line. `headline` is the case that the goal is set for; it must hold ratio, low and high."""
    ratio = headline["ratio"]
    line = {
        "benchmark": benchmark,
        "ratio": ratio,
        "low": headline["low"],
        "high": headline["high"],
        "goal": goal,
        "met": ratio >= goal,
        "cases": list(cases),
    }
    print(json.dumps(line, default=lambda value: round(value, 4)))
