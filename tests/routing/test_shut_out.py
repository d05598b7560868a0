"""Experts that a router shuts out, by a logit of -inf: no policy sends a token to one, sums over a lane stay in order,
and all code paths agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.routing import Policy, RouterRule, Routing, StepContext, build_policy
from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.ops.lanes import MOST_LOGIT, lane_logits, lane_sum
from tests.drawn_once import given_once
from tests.routing.kernel_cases import DTYPES, assert_equal, by_kernels, by_torch, of_type
from tests.routing.laws import POLICIES, SHUT, Case, cases, route, same, short_cases, shut_cases

EXAMPLES = 60
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)


def running(routing: Routing, row: int) -> set[int]:
    pairs = zip(routing.experts[row].tolist(), routing.weights[row].tolist(), strict=True)
    return {expert for expert, weight in pairs if weight > 0}


def lifted(rule: RouterRule) -> bool:
    """Whether a bias on scores may lift one of 0 into the choice: by the model's own rule, which policies follow."""
    return rule.bias is not None and rule.bias_on == "scores"


@every_policy
@given_once(EXAMPLES, case=shut_cases())
def test_nobody_is_sent_to_an_expert_that_is_shut_out(policy: Policy, case: Case) -> None:
    """sere looks at no score: it may send a token to what that token's router alone shuts out, as published."""
    if not case.fits(policy):
        return
    out, choice = case.run(policy), case.routing.choice(case.rule)
    assert torch.isfinite(out.weights).all() and bool((out.weights >= 0).all())
    shut = choice == -torch.inf
    if policy.name == "sere":
        shut = torch.stack([shut[case.step.lane == lane].all(0) for lane in case.step.lane])
    for row in range(len(out.experts)):
        ids = out.experts[row].tolist()
        assert not shut[row, ids].any(), "neither run nor named"
        assert running(out, row) or lifted(case.rule)


@every_policy
@given_once(EXAMPLES, case=shut_cases(least=1))
def test_a_row_with_fewer_than_k_experts_left(policy: Policy, case: Case) -> None:
    """Its router fills up with what it shuts out, at no weight; a row that a policy changes names none of those. (A
    probe that denies a token's only expert leaves it the rest.)"""
    if not case.fits(policy) or policy.name in ("sere", "deny_rank"):
        return
    out, shut = case.run(policy), case.routing.choice(case.rule) == -torch.inf
    assert torch.isfinite(out.weights).all()
    top_k = case.routing.top_k
    for row in range(len(out.experts)):
        assert running(out, row) or lifted(case.rule)
        stays = torch.equal(out.experts[row, :top_k], case.routing.experts[row])
        ids = out.experts[row].tolist()
        assert stays or not shut[row, ids].any() or {*ids} <= {*case.routing.experts[row].tolist()}


@settings(max_examples=150, deadline=None)
@given(case=shut_cases(least=1, values=SHUT), policy=st.sampled_from(POLICIES))
def test_loops_and_definition_agree(case: Case, policy: Policy) -> None:
    if case.fits(policy):
        fast, slow = case.run(policy), by_torch(policy, case)
        assert torch.equal(fast.experts, slow.experts)
        assert torch.allclose(fast.weights, slow.weights, rtol=2e-6, atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(case=shut_cases(least=1, values=SHUT), policy=st.sampled_from(POLICIES), logits=st.sampled_from(DTYPES))
def test_kernels_and_definition_agree(case: Case, policy: Policy, logits: torch.dtype) -> None:
    pytest.importorskip("triton")
    case = of_type(case, logits, torch.float32)
    if case.fits(policy):
        assert_equal(policy, case)


BY = pytest.mark.parametrize("by", ["loops", "torch", "kernels"])


def run_by(by: str, policy: Policy, case: Case) -> Routing:
    if by == "kernels":
        pytest.importorskip("triton")
        return by_kernels(policy, case)
    return case.run(policy) if by == "loops" else by_torch(policy, case)


@every_policy
@given_once(EXAMPLES, case=short_cases())
def test_loops_and_definition_agree_on_rows_with_fewer_than_k_experts_left(policy: Policy, case: Case) -> None:
    if case.fits(policy):
        fast, slow = case.run(policy), by_torch(policy, case)
        assert torch.equal(fast.experts, slow.experts)
        assert torch.allclose(fast.weights, slow.weights, rtol=2e-6, atol=1e-9)


@BY
@settings(max_examples=150, deadline=None)
@given(case=short_cases(), policy=st.sampled_from(POLICIES))
def test_an_expert_gets_no_vote_of_a_row_that_shuts_it_out(case: Case, policy: Policy, by: str) -> None:
    """With which of those a row fills up its list changes nothing for the others."""
    if not case.fits(policy):
        return
    shut = case.routing.choice(case.rule) == -torch.inf
    experts, other = case.routing.experts, torch.arange(shut.shape[1])
    listed = shut.gather(-1, experts)
    last = torch.where(shut, other, -1).amax(-1, keepdim=True)
    filled = replace(case.routing, experts=torch.where(listed, last, experts))
    before = run_by(by, policy, case)
    after = run_by(by, policy, replace(case, routing=filled, step=replace(case.step, shared={})))
    full = ~listed.any(-1)
    assert torch.equal(before.experts[full], after.experts[full])
    assert torch.equal(before.weights[full], after.weights[full])


@BY
def test_lynx_counts_no_vote_for_what_a_row_shuts_out(by: str) -> None:
    shut = -torch.inf
    logits = [[shut, shut, 3, shut, shut], [3.5, -9, 2, 4, 3.9], [-5, -9, 2, 5, 4.9], [-5, -9, 2, 5, 4.9]]
    rule = RouterRule()
    case = Case(route(torch.tensor(logits), rule), step([0, 0, 0, 0]), rule)
    out = run_by(by, build_policy("lynx", alpha=3.0, beta=2), case)
    assert out.experts[0].tolist() == [2, 2]


@settings(max_examples=60, deadline=None)
@given(case=shut_cases(least=1, values=SHUT))
def test_keeping_every_expert_is_vanilla_bit_for_bit(case: Case) -> None:
    assert same(case.run(build_policy("no_drop")), case.routing)


ROWS = torch.tensor([[1.0, -2.0, 3.0, 0.5], [2.0, -3.0, 1.0, 0.0], [0.0, -4.0, 2.0, 9.0]])


def step(lane: list[int], live: list[bool] | None = None) -> StepContext:
    rows = torch.arange(len(lane))
    there = torch.tensor(live) if live else rows >= 0
    lanes = max(lane) + 1
    key = torch.arange(lanes)
    return StepContext(
        layer=0, decode=rows >= 0, lane=torch.tensor(lane), live=there, num_lanes=lanes, key=key, row=rows
    )


@pytest.mark.parametrize("compiled", [True, False], ids=["loops", "torch"])
@pytest.mark.parametrize("shut", [*SHUT, -1e9])
def test_sums_of_logits_stay_in_order(compiled: bool, shut: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two vetoes wrapped a 64-bit sum round to 0, before all that were below it."""
    monkeypatch.setattr(native, "AVAILABLE", compiled and native.AVAILABLE)
    logits = ROWS.clone()
    logits[:2, 0] = logits[0, 3] = shut
    assert lane_logits(logits, step([0, 0, 0])).tolist() == [[-torch.inf, -9.0, 6.0, -torch.inf]]
    apart = lane_logits(logits, step([0, 1, 1], [True, True, False]))
    assert apart.tolist() == [[-torch.inf, -2.0, 3.0, -torch.inf], [-torch.inf, -3.0, 1.0, 0.0]]
    logits[2, 2] = torch.inf
    assert lane_logits(logits, step([0, 0, 0]))[0, 2] == 4.0 + MOST_LOGIT


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_sums_of_ordinary_logits_are_sums(case: Case) -> None:
    assert torch.equal(lane_logits(case.routing.logits, case.step), lane_sum(case.routing.logits, case.step))


def test_a_lane_keeps_what_none_of_its_tokens_vetoes() -> None:
    """Experts 0 and 3 are vetoed; of the others 2 has the larger sum."""
    logits = ROWS.clone()
    logits[:2, 0] = logits[0, 3] = -torch.inf
    routing, policy = route(logits, RouterRule()), build_policy("xshare", score="logit", warm_up=0, budget=2)
    out = policy(routing, step([0, 0, 0]), RouterRule())
    assert out.experts.tolist() == [[2, 1], [2, 1], [2, 1]]


def test_a_bias_that_shuts_an_expert_out_leaves_the_others_apart() -> None:
    """The mean bias was -inf with it, and every mass infinite or no number."""
    bias = torch.tensor([0.1, -torch.inf, 0.3, 0.2])
    rule = RouterRule(score="sigmoid", bias=bias)
    routing = route(ROWS, rule)
    mass = routing.mass(rule)
    finite = replace(rule, bias=torch.tensor([0.1, 0.2, 0.3, 0.2]))
    others = [0, 2, 3]
    assert torch.allclose(mass[:, others], route(ROWS, finite).mass(finite)[:, others])
    assert mass[:, 1].tolist() == [0.0] * 3 and routing.affinity(rule)[:, 1].tolist() == [-torch.inf] * 3
