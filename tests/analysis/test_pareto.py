"""Frontiers with their uncertainty, hypervolumes, and replicates that share what policies share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_study import POLICIES, FakePolicy, write_cell
from hypothesis import given
from hypothesis import strategies as st

from analysis import load
from analysis.compare import results
from analysis.figures.pareto import points_of
from analysis.frontiers import (
    ACTIVE,
    REFERENCE_LOSS,
    SPEEDUP,
    families,
    frontier_probability,
    hypervolume,
    nondominated,
)
from analysis.resample import Resampler
from analysis.study import study as read_study

Write = Callable[..., Path]
grid_points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9)


@given(grid_points)
def test_frontier_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    kept = nondominated(points)
    for (x, y), keep in zip(points, kept, strict=True):
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert keep == (not beaten)


@given(grid_points, st.integers(0, 3), st.integers(0, 3))
def test_hypervolume_counts_the_squares_dominated(points: list[tuple[int, int]], left: int, below: int) -> None:
    counted = sum(
        any(x >= column + 1 and y >= row + 1 for x, y in points) for column in range(left, 6) for row in range(below, 6)
    )
    assert hypervolume([points], (left, below)).tolist() == [counted]


def test_hypervolume_of_worlds_is_each_ones_own() -> None:
    worlds = np.array([[[2.0, 3.0], [3.0, 1.0]], [[0.0, 9.0], [1.0, 1.0]]])
    assert hypervolume(worlds, (0.0, 0.0)).tolist() == [2 * 3 + 1 * 1, 1.0]


def test_probability_is_the_share_of_worlds() -> None:
    rng = np.random.default_rng(0)
    ahead = rng.normal(1.0, 1.0, (4000, 1)) - np.array([[0.0]])
    same_saving = np.zeros((4000, 2, 2))
    same_saving[:, 0, 1] = ahead[:, 0]  # against a point at 0: ahead with probability Phi(1)
    found = frontier_probability(same_saving, np.array([True, True]))
    assert found[0] == pytest.approx(0.8413, abs=0.02)
    assert found.sum() == pytest.approx(1.0)
    assert frontier_probability(same_saving, np.array([False, True])).tolist() == [0.0, 1.0]


def test_families_measure_from_vanilla_and_leave_controls_out() -> None:
    points = pd.DataFrame(
        {"policy": ["vanilla", "no_drop", "lynx", "lynx"], "x": [1, 1, 1.5, 2], "y": [0, 0, -1, -3.0]}
    )
    worlds = np.repeat(points[["x", "y"]].to_numpy(dtype=float)[None], 5, axis=0)
    (row,) = families(points, worlds, SPEEDUP, origin=1.0).to_dict("records")
    expected = 0.5 * (REFERENCE_LOSS - 1) + 0.5 * (REFERENCE_LOSS - 3)
    assert (row["policy"], row["settings"]) == ("lynx", 2)
    assert [row[f"hypervolume{end}"] for end in ("", "_low", "_high")] == pytest.approx([expected] * 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pareto")
    for policy in (*POLICIES[:3], POLICIES[5], POLICIES[9]):
        for task in ("mini_gsm8k", "mini_wmt16"):
            write_cell(root, policy=policy, task=task, documents=96, repeats=9)
    return root


def test_replicates_are_spread_as_the_estimates_are(made: Path) -> None:
    records = load(made)
    resampler = Resampler(records, 4000)
    for row in results(records).to_dict("records"):
        given = {"corpus": row["unit"] == "BLEU", "value": row["difference"], "se": row["difference_se"]}
        if row["policy"] == "vanilla":
            assert not resampler.difference(row["cell_id"], row["subtask"], **given | {"se": 0.0}).any()
            continue
        found = resampler.difference(row["cell_id"], row["subtask"], **given)
        assert found.mean() == pytest.approx(row["difference"], abs=0.1 * row["difference_se"])
        assert found.std() == pytest.approx(row["difference_se"], rel=0.05)
        active = resampler.active(row["cell_id"], row["subtask"])
        assert active.mean() == pytest.approx(row["active_experts"], rel=0.02)
        assert active.std() == pytest.approx(row["active_experts_se"], rel=0.15)
        speedup = resampler.speedup(row["cell_id"])
        assert row["speedup_low"] <= np.quantile(speedup, 0.1) <= np.quantile(speedup, 0.9) <= row["speedup_high"]


def test_one_plan_draws_the_same_lanes_for_every_policy(cell: Write, tmp_path: Path) -> None:
    """Two policies that spoil the same documents are never told apart by luck."""
    cell(documents=64)
    twins = [FakePolicy(name=name, params={}, harm=1.0) for name in ("top_k", "oea")]
    for policy in twins:
        cell(policy=policy, documents=64)
    records = load(tmp_path)
    resampler = Resampler(records)
    rows = results(records)
    one, other = (
        resampler.difference(row["cell_id"], row["subtask"], corpus=False, value=row["difference"], se=0.0)
        for row in rows[rows["policy"] != "vanilla"].to_dict("records")
    )
    assert one.std() > 0
    assert one == pytest.approx(other)


def test_points_carry_their_probability(made: Path) -> None:
    found = read_study(made)
    resampler = Resampler(found.records)
    for saving in (SPEEDUP, ACTIVE):
        points, left_out = points_of(found.rows, found.rows, saving, resampler)
        assert left_out == []
        by_policy = points[points["subtask"] == "mini_gsm8k"].set_index("policy")
        assert by_policy.loc["no_drop", "frontier_probability"] == 0.0 and not by_policy.loc["no_drop", "frontier"]
        assert by_policy.loc["lynx_v1_latency", "frontier_probability"] > 0.99  # saves most by far
        assert by_policy.loc["random_keep", "frontier_probability"] < 0.01  # spoils four of ten
        assert points["frontier_probability"].between(0, 1).all()
    again, _ = points_of(found.rows, found.rows, SPEEDUP, Resampler(found.records))
    first, _ = points_of(found.rows, found.rows, SPEEDUP, resampler)
    pd.testing.assert_frame_equal(again, first)
