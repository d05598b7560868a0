"""Knobs turned until a number of experts is active."""

from __future__ import annotations

from dataclasses import replace
from math import log2
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp import Engine
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.match import match_active, mean_active
from lynx_exp.routing import ModelShape, Policy, build_policy, policy_names
from tests.engine.conftest import shape_of
from tests.routing.laws import bound

SHAPE = ModelShape(num_experts=16, top_k=2)


@given(target=st.floats(2, 16), bend=st.floats(0.3, 3))
def test_a_whole_knob_gets_the_nearest_value(target: float, bend: float) -> None:
    def active(policy: Any) -> float:
        return 2 + 14 * ((policy.keep_experts - 2) / 14) ** bend

    found: Any = match_active(build_policy("random_keep"), target, SHAPE, active)
    best = min(range(2, 17), key=lambda m: abs(active(replace(found.policy, keep_experts=m)) - target))
    assert (
        abs(found.active - target)
        <= max(abs(active(replace(found.policy, keep_experts=best)) - target), 0.01 * target) + 1e-9
    )
    assert found.policy.keep_experts == found.value and found.active == active(found.policy)


@given(target=st.floats(3, 15))
def test_a_falling_logarithmic_knob(target: float) -> None:
    def active(policy: Any) -> float:
        return 2 + 14 / (1 + 40 * policy.tolerance)

    found: Any = match_active(build_policy("coverage"), target, SHAPE, active)
    assert found.active == pytest.approx(target, rel=0.02) and found.parameter == "tolerance"


def test_a_target_out_of_reach_gets_the_end_of_the_knob() -> None:
    found: Any = match_active(build_policy("oea"), 3.0, SHAPE, lambda policy: 5.0 + policy.k0)
    assert (found.value, found.active, found.target) == (1, 6.0, 3.0)
    found = match_active(build_policy("oea"), 9.0, SHAPE, lambda policy: 5.0 + policy.k0)
    assert (found.value, found.active) == (2, 7.0)


def test_a_knob_that_is_not_monotone_is_searched_on_a_grid() -> None:
    """As alpha on a router with random weights: many at both ends, few between them."""

    def active(policy: Any) -> float:
        return 5 + 11 * abs(log2(policy.alpha) - 1.3) / 1.7

    found: Any = match_active(build_policy("lynx"), 7.0, SHAPE, active)
    assert found.active == pytest.approx(7.0, rel=0.02) and not found.also
    assert found.active == active(found.policy) and found.policy.beta == 2
    assert match_active(build_policy("lynx"), 15.0, SHAPE, active).active == pytest.approx(15.0, rel=0.02)


def test_what_stands_beside_a_knob_is_turned_where_the_knob_comes_nowhere_near() -> None:
    def active(policy: Any) -> float:
        return 12 - 2 * policy.beta + abs(log2(policy.alpha) - 1.5)

    found: Any = match_active(build_policy("lynx"), 4.5, SHAPE, active)
    assert found.active == active(found.policy) == pytest.approx(4.5, rel=0.02)
    assert found.policy.beta == 4 and found.also == {"beta": 4} and found.summary()["also"] == {"beta": 4}
    near: Any = match_active(build_policy("lynx", beta=3), 6.0, SHAPE, active)
    assert near.policy.beta == 3 and "also" not in near.summary()


@given(
    heights=st.lists(st.floats(2, 16), min_size=15, max_size=15),
    target=st.floats(2, 16),
    name=st.sampled_from(["random_keep", "coverage", "lynx"]),
)
def test_no_end_of_any_knob_is_nearer_than_what_is_found(heights, target, name) -> None:
    policy = build_policy(name)
    low, high = policy.knob.bounds(SHAPE)

    def active(turned: Policy) -> float:
        at = (getattr(turned, policy.knob.parameter) - low) / (high - low) * 13.99
        share = at - int(at)
        return (1 - share) * heights[int(at)] + share * heights[int(at) + 1]

    found: Any = match_active(policy, target, SHAPE, active)
    ends = [replace(policy, **{policy.knob.parameter: int(v) if policy.knob.integer else v}) for v in (low, high)]
    assert found.active == active(found.policy)
    assert abs(found.active - target) <= min(abs(active(end) - target) for end in ends) or (
        abs(found.active - target) <= 0.1 * target
    )


def test_a_policy_without_a_knob_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="no_drop: match_active=5: this policy has no parameter"):
        match_active(build_policy("no_drop"), 5, SHAPE, lambda policy: 5.0)
    with pytest.raises(ValueError, match="match_active=1: must lie in 2..8"):
        engine.match_active(build_policy("oea"), 1, [], BatchPlan(()))


KNOBS = [name for name in policy_names() if build_policy(name).knob and name != "lynx"]
"""lynx's alpha is monotone on trained routers only: where it is depends on how far apart their logits lie."""


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_moves_the_active_experts_in_its_direction(engine: Engine, prompts: list, name: str) -> None:
    """The ends of each knob, on a real model: its range is worth bisecting."""
    requests = [Request(prompt_ids=tuple(p), continuation_ids=tuple(p[:6])) for p in prompts if len(p) > 5][:16]
    plan = BatchPlan.in_order(len(requests), 8)
    policy = build_policy(name)
    low, high = policy.knob.bounds(shape_of(engine))

    def active(value: float) -> float:
        turned = replace(policy, **{policy.knob.parameter: int(value) if policy.knob.integer else value})
        return mean_active(engine.score_lanes(requests, plan, bound(turned, shape_of(engine))))

    fewest, most = (active(high), active(low)) if policy.knob.falling else (active(low), active(high))
    assert fewest < most - 0.5, name


def test_the_engine_hits_a_target(engine: Engine, prompts: list[list[int]]) -> None:
    requests = [Request(prompt_ids=tuple(p), continuation_ids=tuple(p[:6])) for p in prompts if len(p) > 5][:16]
    plan = BatchPlan.in_order(len(requests), 8)
    found = engine.match_active(build_policy("coverage"), 4.0, requests, plan)
    assert found.active == pytest.approx(4.0, abs=0.15)
    again = mean_active(engine.score_lanes(requests, plan, found.policy))
    assert again == found.active
