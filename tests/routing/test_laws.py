"""The laws of every policy (and, through the loop over `policy_names()`, of every policy added later)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.routing import LanePolicy, Phased, Policy, build_policy
from tests.routing.laws import POLICIES, Case, cases, same, take

every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
examples = settings(max_examples=60, deadline=None)


def run(policy: Policy, case: Case):
    return policy(case.routing, case.step, case.rule)


@every_policy
@examples
@given(case=cases())
def test_slots_that_run_something_have_distinct_experts(policy: Policy, case: Case) -> None:
    out = run(policy, case)
    for experts, weights in zip(out.experts.tolist(), out.weights.tolist(), strict=True):
        running = [e for e, w in zip(experts, weights, strict=True) if w > 0]
        assert running and len(set(running)) == len(running)
        assert set(experts) == set(running), "an empty slot must repeat an expert that the row runs"
        assert all(0 <= e < case.routing.num_experts for e in experts)


@every_policy
@examples
@given(case=cases(), seed=st.integers(0, 2**31 - 1))
def test_row_order_does_not_matter(policy: Policy, case: Case, seed: int) -> None:
    order = torch.randperm(len(case.step.lane), generator=torch.Generator().manual_seed(seed))
    straight, shuffled = run(policy, case), run(policy, take(case, order))
    assert torch.equal(straight.experts[order], shuffled.experts)
    assert torch.allclose(straight.weights[order], shuffled.weights, rtol=1e-6, atol=0)


@every_policy
@examples
@given(case=cases())
def test_dead_rows_neither_vote_nor_change(policy: Policy, case: Case) -> None:
    out = run(policy, case)
    dead = ~case.step.live
    assert torch.equal(out.experts[dead], case.routing.experts[dead])
    assert torch.equal(out.weights[dead], case.routing.weights[dead])
    alive = torch.nonzero(case.step.live)[:, 0]
    alone = run(policy, take(case, alive))
    assert torch.equal(out.experts[alive], alone.experts)
    assert torch.allclose(out.weights[alive], alone.weights, rtol=1e-6, atol=0)


@every_policy
@examples
@given(case=cases())
def test_dead_rows_may_hold_junk(policy: Policy, case: Case) -> None:
    dead = ~case.step.live
    logits = case.routing.logits.clone()
    logits[dead] = torch.tensor(float("nan"))
    junk = Case(replace(case.routing, logits=logits), case.step, case.rule)
    clean, out = run(policy, case), run(policy, junk)
    assert torch.equal(clean.experts[~dead], out.experts[~dead])
    assert torch.equal(clean.weights[~dead], out.weights[~dead])


@every_policy
@examples
@given(case=cases())
def test_lanes_do_not_see_one_another(policy: Policy, case: Case) -> None:
    out = run(policy, case)
    for lane in range(case.step.num_lanes):
        rows = torch.nonzero(case.step.lane == lane)[:, 0]
        if not len(rows):
            continue
        alone = take(case, rows)
        moved = replace(
            alone.step, lane=torch.zeros(len(rows), dtype=torch.long), num_lanes=1, key=case.step.key[[lane]]
        )
        single = policy(alone.routing, moved, case.rule)
        assert torch.equal(out.experts[rows], single.experts)
        assert torch.allclose(out.weights[rows], single.weights, rtol=1e-6, atol=0)


@every_policy
@examples
@given(case=cases())
def test_rows_of_other_phases_pass_through(policy: Policy, case: Case) -> None:
    for phases, untouched in (("decode", ~case.step.decode), ("prefill", case.step.decode)):
        out = Phased(policy, phases)(case.routing, case.step, case.rule)
        assert torch.equal(out.experts[untouched], case.routing.experts[untouched])
        assert torch.equal(out.weights[untouched], case.routing.weights[untouched])
    assert same(Phased(policy, "none")(case.routing, case.step, case.rule), case.routing)
    assert same(Phased(policy, "both")(case.routing, case.step, case.rule), run(policy, case))


@every_policy
@examples
@given(case=cases())
def test_mass(policy: Policy, case: Case) -> None:
    """A token keeps its top-K mass (1 if the router renormalises), unless `top_k` runs fewer by their own weights."""
    out = run(policy, case)
    before, after = case.routing.weights.sum(-1), out.weights.sum(-1)
    assert torch.all(out.weights >= 0)
    if policy.name == "top_k" and not case.rule.renormalize:
        assert torch.all(after <= before * (1 + 1e-6))
    else:
        assert torch.allclose(after, before, rtol=1e-5, atol=1e-7)


@every_policy
@examples
@given(case=cases())
def test_kept_sets_hold_at_least_k_experts_and_small_lanes_are_left_alone(policy: Policy, case: Case) -> None:
    if not isinstance(policy, LanePolicy):
        return
    kept = policy.keep(case.routing, case.step, case.rule)
    sizes = torch.bincount(case.step.lane[case.step.live], minlength=case.step.num_lanes)
    out = run(policy, case)
    for lane in range(case.step.num_lanes):
        rows = (case.step.lane == lane) & case.step.live
        if sizes[lane] < policy.min_batch:
            assert torch.equal(out.experts[rows], case.routing.experts[rows])
        elif sizes[lane]:
            assert kept[lane].sum() >= case.routing.top_k
            assert kept[lane][out.experts[rows]].all(), "a live row left its lane's kept set"


@examples
@given(case=cases())
def test_no_drop_is_vanilla_bit_for_bit(case: Case) -> None:
    assert same(run(build_policy("no_drop"), case), case.routing)
    assert same(run(build_policy("vanilla"), case), case.routing)


@examples
@given(case=cases())
def test_keeping_all_experts_is_vanilla_bit_for_bit(case: Case) -> None:
    everything = case.routing.num_experts
    for name in ("lynx_v1_latency", "random_keep"):
        assert same(run(build_policy(name, keep_experts=everything), case), case.routing)
    assert same(run(build_policy("top_k", k=case.routing.top_k), case), case.routing)
