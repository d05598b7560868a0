"""Do the intervals and tests do what they say? Simulated sweeps: lanes with harms of their own, many times over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from analysis import latency, statistics
from benchmarks.simulated import Sweep, Translations
from benchmarks.simulated_studies import Candidates

SWEEPS = 2000


def draws(sweep: Sweep, seed: int, sweeps: int = SWEEPS) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(policy, vanilla, lane) of each simulated cell."""
    rng = np.random.default_rng(seed)
    return (sweep.draw(rng) for _ in range(sweeps))


def coverage(sweep: Sweep, seed: int = 0) -> float:
    hits = 0
    for policy, vanilla, lane in draws(sweep, seed):
        estimate = statistics.paired_difference(policy, vanilla, lane)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= sweep.truth <= estimate.high
    return hits / SWEEPS


def test_a_95_percent_interval_covers_95_percent() -> None:
    assert 0.93 <= coverage(Sweep(lanes=25, rows=16)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [
        Sweep(lanes=8, rows=16, accuracy=0.8, alike=8),
        Sweep(lanes=16, rows=16, spoils=0.2, alike=10),
        Sweep(lanes=64, rows=4, accuracy=0.6),
        Sweep(lanes=200, rows=1, accuracy=0.5),
        Sweep(lanes=100, rows=16, spoils=0.03, mends=0.1, alike=100),
    ],
    ids=str,
)
def test_coverage_of_many_designs(sweep: Sweep) -> None:
    assert 0.93 <= coverage(sweep, seed=1) <= 0.98  # eight lanes that differ much: 97.2 %, a little conservative


@pytest.mark.parametrize("lanes, rows", [(4, 16), (64, 1), (16, 4)])
def test_rare_changes_are_not_taken_for_certainty(lanes: int, rows: int) -> None:
    """One document in fifty changes: the clustered formula alone covers 60 to 80 %."""
    assert coverage(Sweep(lanes=lanes, rows=rows, accuracy=0.95, spoils=0.01, mends=0.1)) >= 0.95


# 4,000 documents in 250 lanes, 2.6 % of them changing; the loss is exactly one point
REGRESSION = Sweep(lanes=250, rows=16, accuracy=0.9, spoils=0.02, mends=0.08, alike=1e6)
NULL = Sweep(lanes=250, rows=16, accuracy=0.9, spoils=0.0145, mends=0.1305, alike=1e6)
ERROR = 3 * math.sqrt(0.05 * 0.95 / SWEEPS)
"""Three standard errors of a share of 5 % in so many sweeps."""


def rates(sweep: Sweep, seed: int) -> tuple[float, float]:
    """Shares of sweeps that find a difference, and that find it within one point."""
    different = within = 0
    for policy, vanilla, lane in draws(sweep, seed):
        estimate = statistics.paired_difference(policy, vanilla, lane).scaled(100)
        different += statistics.p_value(estimate) < 0.05
        within += statistics.tost(estimate, 1.0) < 0.05
    return different / SWEEPS, within / SWEEPS


def power(sweep: Sweep, against: float) -> float:
    """Of a two-sided 5 % test, by the normal formula; points."""
    changed = sweep.accuracy * sweep.spoils + (1 - sweep.accuracy) * sweep.mends
    se = 100 * math.sqrt((changed - sweep.truth**2) / (sweep.lanes * sweep.rows))
    return float(stats.norm.sf(1.96 - against / se))


def test_a_planted_point_is_found_and_not_called_equivalent() -> None:
    found, within = rates(REGRESSION, seed=2)
    assert pytest.approx(-0.01) == REGRESSION.truth
    assert power(REGRESSION, 1.0) > 0.95
    assert abs(found - power(REGRESSION, 1.0)) < 0.02
    assert within <= 0.05 + ERROR  # at the margin's edge the test errs in 5 %


def test_a_planted_nothing_is_not_found_and_called_equivalent() -> None:
    found, within = rates(NULL, seed=3)
    assert pytest.approx(0.0, abs=1e-12) == NULL.truth
    assert found <= 0.05 + ERROR
    assert within > 0.95


def test_the_sample_size_named_has_the_power_named() -> None:
    """Plan from one simulated pilot of 640 documents; run that many documents: four of five show equivalence."""
    pilot = Sweep(lanes=40, rows=16, accuracy=0.9, spoils=0.0145, mends=0.1305, alike=1e6)
    sizes = [
        statistics.documents_needed(statistics.paired_difference(*cell).scaled(100), 640, 1.0)
        for cell in draws(pilot, 4, sweeps=300)
    ]
    lanes = round(float(np.median(sizes)) / 16)
    asked = Sweep(lanes=lanes, rows=16, accuracy=0.9, spoils=0.0145, mends=0.1305, alike=1e6)
    assert rates(asked, seed=5)[1] == pytest.approx(statistics.POWER, abs=0.06)


@pytest.mark.parametrize("lanes, rows, alike", [(50, 16, 1e6), (50, 16, 30)])
def test_a_loss_of_exactly_the_margin_is_rarely_within_it(lanes: int, rows: int, alike: float) -> None:
    """All changes are losses, of one point: two t tests found it within one in 7 to 18 %."""
    sweep = Sweep(lanes=lanes, rows=rows, accuracy=1.0, spoils=0.01, mends=0.0001, alike=alike)
    found = [
        statistics.tost(statistics.paired_difference(*cell).scaled(100), 1.0) < 0.05
        for cell in draws(sweep, 8, sweeps=1000)
    ]
    assert np.mean(found) <= 0.06


def test_enough_lanes_have_seen_the_rare_one() -> None:
    """One lane in fifty loses half its documents: 25 to 50 lanes covered it in 42 to 77 %."""
    lanes, rng, hits = statistics.lanes_needed(1.0), np.random.default_rng(9), 0
    lane = np.repeat(np.arange(lanes), 16)
    for _ in range(600):
        lost = (rng.random(lanes) < 0.02)[lane] & (rng.random(len(lane)) < 0.5)
        estimate = statistics.paired_difference(1.0 - lost, np.ones(len(lane)), lane)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= -0.01 <= estimate.high
    assert hits / 600 >= 0.93


def test_a_drifting_machine_is_covered() -> None:
    """Twelve windows, each half like the one before: a plain t interval covers 76 %."""
    rng = np.random.default_rng(10)
    hits = 0
    for _ in range(SWEEPS):
        noise = [rng.normal()]
        for _ in range(11):
            noise.append(0.5 * noise[-1] + math.sqrt(0.75) * rng.normal())
        estimate = statistics.serial_ratio(1.2 * np.exp(0.03 * np.array(noise)), np.ones(12))
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 1.2 <= estimate.high
    assert hits / SWEEPS >= 0.925


@pytest.mark.parametrize("rows", [8, 16])
def test_rare_destroyed_sentences_are_covered_beside_trivial_edits(rows: int) -> None:
    """One in a hundred is destroyed: BCa over 25 lanes covered 70 to 80 %."""
    made, rng = Translations(lanes=25, rows=rows, destroys=0.01, edits=0.3), np.random.default_rng(11)
    assert np.mean([made.covered(rng) for _ in range(200)]) >= 0.93


@pytest.mark.slow
def test_bleu_differences_cover_theirs() -> None:
    """Sentences of ten words of which the policy spoils some, more in some lanes."""
    made, rng = Translations(lanes=64, rows=16, spoils=0.1, alike=10), np.random.default_rng(6)
    assert 0.93 <= np.mean([made.covered(rng) for _ in range(600)]) <= 0.99


EIGHT = Candidates(losses=(1.0,) * 8, lanes=250, rows=16)


def test_a_setting_at_the_margin_is_rarely_recommended() -> None:
    """All eight lose exactly one point: without Holm's correction one is taken in a quarter of sweeps."""
    rng = np.random.default_rng(12)
    assert np.mean([EIGHT.harmful(rng) for _ in range(300)]) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize(
    "candidates",
    [
        EIGHT,
        replace(EIGHT, alike=19.0),
        replace(EIGHT, losses=(1.0,) * 4 + (0.0,) * 4, gains=0.5),
    ],
    ids=str,
)
def test_of_eight_settings_none_at_the_margin_is_taken(candidates: Candidates) -> None:
    rng = np.random.default_rng(13)
    assert np.mean([candidates.harmful(rng) for _ in range(1500)]) <= 0.06


def test_a_harmless_setting_is_found_among_harmful_ones() -> None:
    made, rng = replace(EIGHT, losses=(1.0,) * 7 + (0.0,), gains=0.5), np.random.default_rng(14)
    assert np.mean([made.harmless(rng) for _ in range(50)]) >= 0.8


def test_a_speedup_of_nine_repeats_covers_its_truth() -> None:
    """The median of paired steps' medians, with 3 % of noise and a machine that drifts: a truth of 1.2."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(SWEEPS):
        ratios = 1.2 * np.exp(rng.normal(0, 0.03, 9))
        estimate = latency.median(ratios)
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 1.2 <= estimate.high
    assert 0.92 <= hits / SWEEPS <= 0.98
