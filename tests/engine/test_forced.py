"""Teacher-forced decode equals the decoding that it stands for, also where slots are refilled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, LaneResult, Request
from lynx_exp.engine.decoding.forced_plan import ForcedPlan, seat
from lynx_exp.engine.decoding.prompts import plan_order
from lynx_exp.routing import Policy
from tests.engine.conftest import VOCAB, shape_of
from tests.engine.packing import watched
from tests.engine.test_stream import refill
from tests.routing.laws import REPRESENTATIVES, bound

PLANS = {
    "static": BatchPlan.static(12, 4, 5),
    "one lane": BatchPlan.continuous(12, 3, 5, waves=4),
    "two lanes": BatchPlan.continuous(12, 2, 5, waves=3),
}

FILLED = BatchPlan.continuous(8, 3, 5, waves=2).filled((8, 9, 10, 11), range(12), 1)


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """Prompts of 1 to 90 tokens, responses of up to 1 to 7."""
    rng = Random(9)
    return [
        Request(prompt_ids=tuple(rng.randrange(3, VOCAB) for _ in range(length)), max_new_tokens=1 + number * 5 % 7)
        for number, length in enumerate((3, 20, 7, 64, 1, 18, 90, 4, 13, 65, 3, 8))
    ]


def generated(
    engine: Engine, requests: Sequence[Request], plan: BatchPlan, policy: Policy | None
) -> tuple[list[LaneResult], dict[int, float]]:
    """(lanes, summed log-probability of each response as the decoder's logits gave them)."""
    own = [replace(request) for request in requests]
    with watched(engine, 64) as logits:
        lanes = list(engine.run_lanes(own, plan, policy))
        store = engine._store(plan_order(own, plan))
    totals = {}
    for lane in lanes:
        for number, tokens in zip(lane.requests, lane.token_ids, strict=True):
            made, row = store.get(own[number].prompt_ids)
            rows = [made.logits[row], *logits.get(id(own[number]), [])]
            assert len(rows) == len(tokens)
            logprobs = [r.double().log_softmax(-1)[t] for r, t in zip(rows, tokens, strict=True)]
            totals[number] = float(torch.stack(logprobs).sum())
    return lanes, totals


def as_continuations(
    requests: Sequence[Request], lanes: Sequence[LaneResult], others: tuple[int, ...] = ()
) -> list[Request]:
    tokens = {n: tuple(ids) for lane in lanes for n, ids in zip(lane.requests, lane.token_ids, strict=True)}
    return [replace(request, continuation_ids=tokens.get(number, others)) for number, request in enumerate(requests)]


@pytest.mark.parametrize("policy", REPRESENTATIVES, ids=lambda policy: policy.label)
def test_a_lane_with_fillers_is_scored_as_it_decodes(engine: Engine, requests: list[Request], policy: Policy) -> None:
    """A filler that the lane's end cuts has the tokens of its part; of its whole response, the same part is taken."""
    policy = bound(policy, shape_of(engine))
    lanes = list(engine.run_lanes(requests, FILLED, policy))
    assert any("cut" in lane.finish_reasons for lane in lanes)
    for decoded in lanes:
        given = as_continuations(requests, [decoded], others=(5,))
        longer = [
            replace(r, continuation_ids=(*r.continuation_ids, 5, 6)) if n in decoded.requests[decoded.own :] else r
            for n, r in enumerate(given)
        ]
        for asked in (given, longer if decoded.finish_reasons[-1] == "cut" and decoded.fillers == 1 else given):
            (scored,) = engine.score_lanes(asked, FILLED, policy, lanes=[decoded.lane])
            assert (scored.requests, scored.fillers) == (decoded.requests, decoded.fillers)
            assert (scored.slots, scored.token_ids) == (decoded.slots, decoded.token_ids)
            assert (scored.live_rows, scored.scored_rows) == (decoded.live_rows, decoded.scored_rows)
            assert scored.active_experts == decoded.active_experts


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("policy", REPRESENTATIVES, ids=lambda policy: policy.label)
def test_scoring_what_was_generated_repeats_the_decoding(
    engine: Engine, requests: list[Request], policy: Policy, plan: BatchPlan
) -> None:
    """Log-probabilities, who is live at which step, in which slot, and which experts ran."""
    policy = bound(policy, shape_of(engine))
    lanes, totals = generated(engine, requests, plan, policy)
    scored = list(engine.score_lanes(as_continuations(requests, lanes), plan, policy))
    by_number = {lane.lane: lane for lane in lanes}
    assert sorted(by_number) == sorted(lane.lane for lane in scored)
    for lane in scored:
        decoded = by_number[lane.lane]
        assert (lane.requests, lane.slots, lane.token_ids) == (decoded.requests, decoded.slots, decoded.token_ids)
        assert lane.live_rows == decoded.live_rows
        assert lane.active_experts == decoded.active_experts
        assert all(lane.greedy or [])
        assert lane.logprobs == pytest.approx([totals[number] for number in lane.requests], abs=1e-4)


def test_the_refilling_matters(engine: Engine, requests: list[Request]) -> None:
    """The test above can fail: scored as a static lane, the same tokens get other log-probabilities."""
    policy, plan = build_policy("lynx_v1_latency", keep_experts=2), PLANS["one lane"]
    lanes, totals = generated(engine, requests, plan, policy)
    scored = engine.score_lanes(as_continuations(requests, lanes), replace(plan, slots=None), policy)
    found = {n: x for lane in scored for n, x in zip(lane.requests, lane.logprobs or [], strict=True)}
    assert sum(abs(found[number] - totals[number]) > 1e-2 for number in found) >= 4


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=14), slots=st.none() | st.integers(1, 16))
def test_seats_are_those_of_a_server_that_goes_step_by_step(lengths: list[int], slots: int | None) -> None:
    tokens = {number: [0] * length for number, length in enumerate(lengths)}
    slot_of, steps = refill(range(len(lengths)), tokens, min(slots or len(lengths), len(lengths)))
    seats = seat(lengths, [], slots)
    assert [each.slot for each in seats] == [slot_of[number] for number in tokens]
    requests = [Request(prompt_ids=(3,), continuation_ids=tuple(ids)) for ids in tokens.values()]
    plan = ForcedPlan.of(requests, BatchPlan((tuple(tokens),), slots=slots), [0])
    assert plan.live_rows(0) == [len(live) for live in steps]
    assert plan.num_steps == len(steps)
    for number, (start, *_) in enumerate(seats):
        first = next((at for at, live in enumerate(steps) if number in live), None)
        assert first is None or first == start


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12), slots=st.integers(1, 5))
def test_seats_are_those_of_the_stream(engine: Engine, requests: list[Request], lengths: list[int], slots: int) -> None:
    asked = [
        replace(request, max_new_tokens=length, ignore_eos=True)
        for request, length in zip(requests, lengths, strict=False)
    ]
    plan = BatchPlan((tuple(range(len(asked))),), slots=slots)
    (lane,) = engine.run_lanes(asked, plan)
    assert [each.slot for each in seat(lengths, [], slots)] == list(lane.slots)
    forced = ForcedPlan.of(as_continuations(asked, [lane]), plan, [0])
    assert forced.live_rows(0) == lane.live_rows


def test_prompts_beside_longer_ones_are_scored(engine: Engine) -> None:
    """Prefilled together, scored apart: a pack's own prompts need less room than the longest of their prefill."""
    rng = Random(2)
    requests = [
        Request(prompt_ids=tuple(rng.randrange(3, VOCAB) for _ in range(length)), continuation_ids=(5, 6, 7))
        for length in (4, 9, 100, 80)
    ]
    plan, policy = BatchPlan(((0, 1), (2, 3))), build_policy("lynx_v1_latency", keep_experts=2)
    engine._stores.clear()
    rows, engine.max_rows = engine.max_rows, 2
    try:
        apart = list(engine.score_lanes(requests, plan, policy))
    finally:
        engine.max_rows = rows
    together = list(engine.score_lanes(requests, plan, policy))
    for one, other in zip(apart, together, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.active_experts == other.active_experts


@pytest.mark.parametrize("phases", ["prefill", "both"])
def test_a_policy_that_acts_in_prefill_is_scored_as_it_decodes(
    engine: Engine, requests: list[Request], phases: str
) -> None:
    """Those that enter a lane together are one prefill, whose experts the policy chooses together."""
    policy = build_policy("random_keep", keep_experts=3)
    lanes = {lane.lane: lane for lane in engine.run_lanes(requests, FILLED, policy, phases)}  # type: ignore[arg-type]
    for number, decoded in lanes.items():
        own = as_continuations(requests, [decoded], others=(5,))
        (scored,) = engine.score_lanes(own, FILLED, policy, phases, lanes=[number])  # type: ignore[arg-type]
        assert (scored.requests, scored.slots, scored.token_ids) == (decoded.requests, decoded.slots, decoded.token_ids)
        assert (scored.live_rows, scored.active_experts) == (decoded.live_rows, decoded.active_experts)
        assert (scored.prompt_tokens, scored.prompt_changed) == (decoded.prompt_tokens, decoded.prompt_changed)
        assert all(scored.greedy or [])
    assert sum(sum(lane.prompt_changed) for lane in lanes.values()) > 0
