"""Checks the intervals, verdicts and recommendations of the tables on simulated sweeps whose truth is known.

    python benchmarks/intervals.py [--quick] [--only GROUP]

Each scenario draws a sweep a thousand times or more (`simulated.py`, `simulated_studies.py`), hands it to the
estimators of the tables, and counts how often the interval contains the truth, a loss of exactly one point is called
within one point, or a setting that loses one point is recommended. Each share has its 95 % Monte Carlo interval.

Verdicts: "ok" for a coverage of 93 to 97 % or an error of at most 6 %, "conservative" for more coverage, "short" for
less, and "short, said" where the table itself warns of "few lanes". The ratio of the last line is the share of correct
sweeps over the smallest accepted one, in the worst scenario without such a warning. It takes minutes on one core. With
--quick it takes seconds, and shows only that the script runs.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.statistics import lanes_needed, wilson
from benchmarks.harness import report
from benchmarks.simulated import MARGIN, Plans, Random, Subtasks, Sweep, Translations, Windows
from benchmarks.simulated_studies import Candidates, RareLane

LEAST, MOST, SIZE = 0.93, 0.97, 0.06
"""The coverage accepted as 95 %, and the error rate accepted as 5 %, allowing for the error of the simulation."""
COVERAGE, ERROR, POWER = "95 %", "<= 5 %", "power"
SHORT_BUT_WARNED = "short, said"
QUICK = 5
"""Sweeps of a scenario in a smoke run."""
TABLE = "{:<82} {:>7} {:>9} {:>15}  {}"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    group: str
    name: str
    nominal: str
    draw: Callable[[Random], bool]
    sweeps: int
    warned: bool = False
    """Whether the table warns that such a study has too few lanes."""

    def run(self, sweeps: int) -> dict[str, Any]:
        rng = np.random.default_rng(zlib.crc32(f"{self.group}, {self.name}, {self.nominal}".encode()))
        hits = sum(self.draw(rng) for _ in range(sweeps))
        low, high = wilson(hits, sweeps)
        case = {"group": self.group, "scenario": self.name, "nominal": self.nominal, "sweeps": sweeps}
        shares = {name: round(share, 4) for name, share in (("observed", hits / sweeps), ("low", low), ("high", high))}
        return case | shares | {"verdict": self._verdict(hits / sweeps)}

    def _verdict(self, observed: float) -> str:
        if self.nominal == POWER:
            return "-"
        if observed > SIZE if self.nominal == ERROR else observed < LEAST:
            return SHORT_BUT_WARNED if self.warned else "short"
        return "conservative" if self.nominal == COVERAGE and observed > MOST else "ok"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} sweeps a scenario: a smoke run")
    parser.add_argument("--only", choices=list(dict.fromkeys(one.group for one in scenarios())))
    options = parser.parse_args()
    chosen = [one for one in scenarios() if options.only in (None, one.group)]
    print(TABLE.format("scenario", "nominal", "observed", "(95 %)", "verdict"))
    cases = []
    for scenario in chosen:
        case = scenario.run(QUICK if options.quick else scenario.sweeps)
        ends = f"[{100 * case['low']:.1f}, {100 * case['high']:.1f}]"
        label = f"{scenario.group}: {scenario.name}"
        print(
            TABLE.format(label, scenario.nominal, f"{100 * case['observed']:.1f} %", ends, case["verdict"]), flush=True
        )
        cases.append(case)
    report("intervals", 1.0, min(map(_right, filter(_counts, cases)), key=lambda each: each["ratio"]), cases)


def _counts(case: dict[str, Any]) -> bool:
    return bool(case["nominal"] != POWER and case["verdict"] != SHORT_BUT_WARNED)


def _right(case: dict[str, Any]) -> dict[str, Any]:
    """Share of correct sweeps over the smallest share that is accepted."""
    if case["nominal"] == ERROR:
        ends = [(1 - case[end]) / (1 - SIZE) for end in ("observed", "high", "low")]
    else:
        ends = [case[end] / LEAST for end in ("observed", "low", "high")]
    return dict(zip(("ratio", "low", "high"), (round(end, 4) for end in ends), strict=True))


def scenarios() -> Iterator[Scenario]:
    yield from _differences()
    yield from _equivalence()
    yield from _means()
    yield from _bleu()
    yield from _rare_lanes()
    yield from _plans()
    yield from _speedups()
    yield from _recommendations()


def _differences() -> Iterator[Scenario]:
    for sweep, what in (
        (Sweep(lanes=25, rows=16), "one document in ten changes"),
        (Sweep(lanes=8, rows=16, accuracy=0.8, alike=8), "lanes differ much"),
        (Sweep(lanes=16, rows=16, spoils=0.2, alike=10), "lanes differ"),
        (Sweep(lanes=64, rows=4, accuracy=0.6), "a difficult task"),
        (Sweep(lanes=200, rows=1, accuracy=0.5), "batch 1"),
        (Sweep(lanes=100, rows=16, spoils=0.03, mends=0.1, alike=100), "lanes alike"),
        (Sweep(lanes=4, rows=16, accuracy=0.95, spoils=0.01, mends=0.1), "one document in fifty changes"),
        (Sweep(lanes=64, rows=1, accuracy=0.95, spoils=0.01, mends=0.1), "one document in fifty changes"),
        (Sweep(lanes=16, rows=4, accuracy=0.95, spoils=0.01, mends=0.1), "one document in fifty changes"),
    ):
        name = f"{sweep.lanes} lanes of {sweep.rows}, {what}"
        yield Scenario(group="differences", name=name, nominal=COVERAGE, draw=sweep.covered, sweeps=4000)


def _equivalence() -> Iterator[Scenario]:
    for lanes, rows in ((25, 16), (50, 16), (100, 16), (250, 16), (250, 4)):
        for correlation in (0.0, 0.01, 0.05, 0.17):
            alike = 1 / correlation - 1 if correlation else 1e6
            sweep = Sweep(lanes=lanes, rows=rows, accuracy=1.0, spoils=0.01, mends=0.001, alike=alike)
            name, few = (
                f"{lanes} lanes of {rows}, losses only, correlated by {correlation:g}",
                lanes < lanes_needed(MARGIN),
            )
            yield Scenario(group="equivalence", name=name, nominal=ERROR, draw=sweep.within, sweeps=3000, warned=few)
    for correlation in (0.0, 0.01):
        alike = 1 / correlation - 1 if correlation else 1e6
        sweep = Sweep(lanes=250, rows=16, spoils=0.02, mends=0.08, alike=alike)
        name = f"250 lanes of 16, losses and gains, correlated by {correlation:g}"
        yield Scenario(group="equivalence", name=name, nominal=ERROR, draw=sweep.within, sweeps=3000)


def _means() -> Iterator[Scenario]:
    for losses, lanes in (((1.0,) * 4, 25), ((1.0,) * 4, 60), ((4.0, 0.0, 0.0, 0.0), 60), ((2.0, 0.0), 120)):
        for correlation in (0.0, 0.05):
            made = Subtasks(losses=losses, lanes=lanes, alike=1 / correlation - 1 if correlation else 1e6)
            points = " and ".join(f"{loss:g}" for loss in dict.fromkeys(losses))
            name = f"{len(losses)} subtasks of {lanes} lanes of 16 lose {points}, correlated by {correlation:g}"
            yield Scenario(group="means", name=name, nominal=COVERAGE, draw=made.covered, sweeps=1500)
            within = f"{name}: called within"
            yield Scenario(group="means", name=within, nominal=ERROR, draw=made.within, sweeps=1500)


def _bleu() -> Iterator[Scenario]:
    for rows in (8, 16):
        for destroys, edits in ((0.005, 0.3), (0.01, 0.3), (0.02, 0.3), (0.01, 0.0)):
            for alike, how in ((1e6, ""), (20.0, ", by lane")):
                made = Translations(lanes=25, rows=rows, destroys=destroys, edits=edits, alike=alike)
                name = f"25 lanes of {rows}, {100 * destroys:g} % destroyed{how}, {100 * edits:g} % edited"
                yield Scenario(group="bleu", name=name, nominal=COVERAGE, draw=made.covered, sweeps=1000)
    made = Translations(lanes=64, rows=16, spoils=0.1, alike=10)
    name = "64 lanes of 16, words spoiled in one sentence of ten, by lane"
    yield Scenario(group="bleu", name=name, nominal=COVERAGE, draw=made.covered, sweeps=1000)


def _rare_lanes() -> Iterator[Scenario]:
    for lanes in (25, 50, 150, 236):
        made, few = RareLane(lanes=lanes), lanes < lanes_needed(MARGIN)
        for nominal, draw, warned, what in (
            (COVERAGE, made.covered, few, "interval holds it"),
            (COVERAGE, made.covered_or_said, False, 'it does, or "few lanes" is said'),
            (ERROR, made.within, False, "called within one point"),
        ):
            name = f"{lanes} lanes of 16, {what}"
            yield Scenario(group="rare lanes", name=name, nominal=nominal, draw=draw, sweeps=1500, warned=warned)


def _plans() -> Iterator[Scenario]:
    for plans, lanes, alike, prone_sd, plan_sd, what in (
        (3, 25, 1e6, 0.0, 0.0, "documents and lanes alike"),
        (3, 25, 20, 0.0, 0.0, "lanes differ"),
        (3, 25, 20, 1.5, 0.0, "lanes and documents differ"),
        (3, 25, 1e6, 1.5, 0.0, "documents differ"),
        (3, 8, 8, 1.0, 0.0, "lanes differ much"),
        (6, 25, 20, 1.0, 0.0, "lanes and documents differ"),
        (3, 100, 20, 1.0, 0.0, "lanes and documents differ"),
        (3, 25, 20, 0.0, 0.3, "plans differ by 30 % more"),
        (3, 25, 20, 0.0, 0.6, "plans differ by 60 % more"),
        (3, 100, 20, 0.0, 0.3, "plans differ by 30 % more"),
        (6, 100, 20, 0.0, 0.3, "plans differ by 30 % more"),
    ):
        made = Plans(plans=plans, lanes=lanes, rows=16, alike=alike, prone_sd=prone_sd, plan_sd=plan_sd)
        name = f"{plans} plans of {lanes} lanes of 16, {what}"
        yield Scenario(group="plans", name=name, nominal=COVERAGE, draw=made.covered, sweeps=1500)
    for alike, how in ((1e6, "lanes alike"), (20, "lanes differ")):
        made = Plans(plans=3, lanes=100, rows=16, accuracy=1.0, spoils=0.01, mends=0.001, alike=alike)
        name = f"3 plans of 100 lanes of 16, a loss of one point, {how}"
        yield Scenario(group="plans", name=name, nominal=ERROR, draw=made.within, sweeps=1500)


def _speedups() -> Iterator[Scenario]:
    for follows in (0.0, 0.5, 0.8):
        for windows in (9, 12, 20, 40):
            made = Windows(windows=windows, follows=follows)
            name = f"{windows} windows, neighbours correlated by {follows:g}"
            yield Scenario(group="speed-ups", name=name, nominal=COVERAGE, draw=made.covered, sweeps=6000)
        made = Windows(windows=24, follows=follows, precision=0.02)
        name = f"10 to 24 windows, until ±2 %, neighbours correlated by {follows:g}"
        yield Scenario(group="speed-ups", name=name, nominal=COVERAGE, draw=made.covered, sweeps=4000)


def _recommendations() -> Iterator[Scenario]:
    for losses, lanes, rows, more, what in (
        ((1.0,) * 8, 250, 16, {}, "all eight at -1"),
        ((1.0,) * 8, 250, 4, {}, "all eight at -1"),
        ((1.0,) * 8, 250, 16, {"shared": 0.5}, "all at -1, half in common"),
        ((1.0,) * 8, 250, 16, {"alike": 99.0}, "all at -1, correlated by 0.01"),
        ((1.0,) * 8, 250, 16, {"alike": 19.0}, "all at -1, correlated by 0.05"),
        ((1.0,) * 8, 250, 16, {"gains": 0.8}, "all at -1, with gains"),
        ((1.0,) * 4 + (0.0,) * 4, 250, 16, {"gains": 0.5}, "faster four at -1"),
        ((1.0,) * 7 + (0.0,), 250, 16, {"gains": 0.5}, "faster seven at -1"),
        ((2.0, 1.5, 1.0, 1.0, 0.5, 0.5, 0.0, 0.0), 250, 16, {"gains": 0.3}, "from -2 to 0"),
    ):
        made = Candidates(losses=losses, lanes=lanes, rows=rows, **more)
        name = f"{lanes} lanes of {rows}, {what}"
        harmful = f"{name}: takes one of those"
        yield Scenario(group="recommend", name=harmful, nominal=ERROR, draw=made.harmful, sweeps=1500)
        if min(losses) < MARGIN:
            harmless = f"{name}: takes a better one"
            yield Scenario(group="recommend", name=harmless, nominal=POWER, draw=made.harmless, sweeps=400)


if __name__ == "__main__":
    main()
