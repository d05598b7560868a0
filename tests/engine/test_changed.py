"""The share of assignments that a policy changes: counted by hand, the same however lanes are run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, LaneResult, Request
from lynx_exp.models import count_changed

ROWS = 12


@pytest.fixture(scope="module")
def requests(prompts: list[list[int]]) -> list[Request]:
    return [
        Request(prompt_ids=tuple(p), max_new_tokens=3 + n % 4, ignore_eos=True) for n, p in enumerate(prompts[:ROWS])
    ]


def lanes(
    engine: Engine, requests: list[Request], policy: Any, phases: Any = "decode", **more: Any
) -> list[LaneResult]:
    plan = BatchPlan.in_order(len(requests), 4)
    return sorted(engine.run_lanes(requests, plan, policy, phases, **more), key=lambda lane: lane.lane)


def assignments(engine: Engine, lane: LaneResult) -> list[list[int]]:
    """All that a lane has, by step and layer."""
    return [[engine.top_k * live] * engine.num_layers for live in lane.live_rows]


def test_counted_by_hand() -> None:
    own = torch.tensor([[0, 1], [0, 1], [2, 3], [2, 3], [0, 1]])
    ran = torch.tensor([[1, 0, 4], [0, 5, 5], [2, 3, 0], [4, 5, 2], [4, 5, 6]])
    weights = torch.ones(5, 3)
    weights[2, 1] = 0  # slot of expert 3 runs nothing
    weights[3, 2] = 0  # and so does that of expert 2
    lane, live = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([True, True, True, True, False])
    record = [(ran, weights, own), (own, torch.ones(5, 2), own)]
    assert count_changed(record, lane, live, 3).tolist() == [[1, 0], [1 + 2, 0], [0, 0]]


def test_nothing_changes_without_a_policy_or_with_the_control(engine: Engine, requests: list[Request]) -> None:
    for policy in (None, build_policy("no_drop")):
        for lane in lanes(engine, requests, policy, "both"):
            assert lane.changed == [[0] * engine.num_layers] * len(lane.live_rows)
            assert lane.prompt_changed == ([] if policy is None else [0] * engine.num_layers)


def test_a_rank_denied_is_one_of_each_row(engine: Engine, requests: list[Request]) -> None:
    for lane in lanes(engine, requests, build_policy("deny_rank", rank=0, mode="drop")):
        assert lane.changed == [[live] * engine.num_layers for live in lane.live_rows]


def test_random_reassignment_changes_the_share_asked_for(engine: Engine, requests: list[Request]) -> None:
    for lane in lanes(engine, requests, build_policy("reassign", fraction=1.0)):
        assert lane.changed == assignments(engine, lane)
    half = lanes(engine, requests, build_policy("reassign", fraction=0.5))
    changed = sum(sum(map(sum, lane.changed)) for lane in half)
    whole = sum(sum(map(sum, assignments(engine, lane))) for lane in half)
    assert changed / whole == pytest.approx(0.5, abs=0.1)


def test_each_phase_has_its_own_count(engine: Engine, requests: list[Request]) -> None:
    policy = build_policy("reassign", fraction=1.0)
    plan = BatchPlan.in_order(len(requests), 4)
    for phases in ("decode", "prefill", "both"):
        for lane in lanes(engine, requests, policy, phases):
            none = [[0] * engine.num_layers] * len(lane.live_rows)
            assert lane.changed == (none if phases == "prefill" else assignments(engine, lane))
            tokens = sum(len(requests[number].prompt_ids) for number in plan.lanes[lane.lane])
            assert lane.prompt_tokens == (0 if phases == "decode" else tokens)
            assert lane.prompt_changed == ([] if phases == "decode" else [engine.top_k * tokens] * engine.num_layers)


def test_only_the_layers_in_which_it_acts(engine: Engine, requests: list[Request]) -> None:
    for lane in lanes(engine, requests, build_policy("reassign", fraction=1.0), "both", layers="1"):
        assert all(step[0] == step[2] == 0 < step[1] for step in lane.changed)
        assert lane.prompt_changed[0] == lane.prompt_changed[2] == 0 < lane.prompt_changed[1]


@pytest.mark.parametrize("phases", ["decode", "prefill", "both"])
def test_padded_lanes_count_the_same(
    engine: Engine, requests: list[Request], phases: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = build_policy("deny_rank", rank=1)
    in_slots = lanes(engine, requests, policy, phases)
    monkeypatch.setattr(engine, "has_slots", False)
    for a, b in zip(in_slots, lanes(engine, requests, policy, phases), strict=True):
        assert (a.token_ids, a.changed) == (b.token_ids, b.changed)
        assert (a.prompt_tokens, a.prompt_changed) == (b.prompt_tokens, b.prompt_changed)


@pytest.mark.parametrize("name, phases", [("lynx_v1_latency", "decode"), ("oea", "decode"), ("deny_rank", "both")])
def test_teacher_forced_lanes_count_the_same(engine: Engine, requests: list[Request], name: str, phases: Any) -> None:
    policy = build_policy(name)
    plan = BatchPlan.in_order(len(requests), 4)
    for lane in lanes(engine, requests, policy, phases):
        continued = list(requests)
        for number, tokens in zip(lane.requests, lane.token_ids, strict=True):
            continued[number] = Request(prompt_ids=requests[number].prompt_ids, continuation_ids=tuple(tokens))
        for number in set(range(ROWS)) - set(lane.requests):
            continued[number] = Request(prompt_ids=requests[number].prompt_ids, continuation_ids=(5,))
        (forced,) = engine.score_lanes(continued, plan, policy, phases, lanes=[lane.lane])
        assert (forced.changed, forced.live_rows) == (lane.changed, lane.live_rows)
        assert (forced.prompt_tokens, forced.prompt_changed) == (lane.prompt_tokens, lane.prompt_changed)
        assert name == "oea" or sum(map(sum, lane.changed)) > 0


def test_scored_in_one_prefill_all_is_of_prompts(engine: Engine, requests: list[Request]) -> None:
    continued = [Request(prompt_ids=r.prompt_ids, continuation_ids=(5, 6, 7)) for r in requests]
    plan = BatchPlan.in_order(len(requests), 4)
    policy = build_policy("reassign", fraction=1.0)
    for lane in engine.score_lanes(continued, plan, policy, "both", scoring="prefill"):
        tokens = sum(len(requests[number].prompt_ids) + 2 for number in plan.lanes[lane.lane])
        assert (lane.changed, lane.prompt_tokens) == ([], tokens)
        assert lane.prompt_changed == [engine.top_k * tokens] * engine.num_layers
