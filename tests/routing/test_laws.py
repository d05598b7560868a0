"""The laws of every policy (and, through the loop over `policy_names()`, of every policy added later)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.routing import LanePolicy, Phased, Phases, Policy, Routing, build_policy
from lynx_exp.routing.policies.oea import Oea
from tests.drawn_once import given_once
from tests.routing.laws import POLICIES, Case, bound, cases, same, take, widened

every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
EXAMPLES = 60
examples = settings(max_examples=EXAMPLES, deadline=None)


def run(policy: Policy, case: Case) -> Routing:
    """The new routing; as it was where the policy refuses the router (`fits`)."""
    return case.run(policy) if case.fits(policy) else case.routing


def phased(policy: Policy, phases: Phases, case: Case) -> Routing:
    out = Phased(bound(policy, case.shape), phases)(case.routing, case.step, case.rule)
    return widened(out, getattr(policy, "k_max", None) or 0)


def unchanged(out: Routing, before: Routing, rows: torch.Tensor) -> bool:
    """Whether `rows` came back as they were, any further slots empty."""
    width = before.top_k
    return (
        torch.equal(out.experts[rows, :width], before.experts[rows])
        and torch.equal(out.weights[rows, :width], before.weights[rows])
        and not out.weights[rows, width:].any()
    )


@every_policy
@given_once(EXAMPLES, case=cases())
def test_slots_that_run_something_have_distinct_experts(policy: Policy, case: Case) -> None:
    """sere may run one expert in two slots, as published."""
    out = run(policy, case)
    for experts, weights in zip(out.experts.tolist(), out.weights.tolist(), strict=True):
        running = [e for e, w in zip(experts, weights, strict=True) if w > 0]
        assert running and (len(set(running)) == len(running) or policy.name == "sere")
        assert set(experts) == set(running), "an empty slot must repeat an expert that the row runs"
        assert all(0 <= e < case.routing.num_experts for e in experts)


@every_policy
@given_once(EXAMPLES, case=cases(), seed=st.integers(0, 2**31 - 1))
def test_row_order_does_not_matter(policy: Policy, case: Case, seed: int) -> None:
    order = torch.randperm(len(case.step.lane), generator=torch.Generator().manual_seed(seed))
    straight, shuffled = run(policy, case), run(policy, take(case, order))
    assert torch.equal(straight.experts[order], shuffled.experts)
    assert torch.allclose(straight.weights[order], shuffled.weights, rtol=1e-6, atol=0)


@every_policy
@given_once(EXAMPLES, case=cases())
def test_dead_rows_neither_vote_nor_change(policy: Policy, case: Case) -> None:
    out = run(policy, case)
    dead = ~case.step.live
    assert unchanged(out, case.routing, dead)
    alive = torch.nonzero(case.step.live)[:, 0]
    alone = run(policy, take(case, alive))
    assert torch.equal(out.experts[alive], alone.experts)
    assert torch.allclose(out.weights[alive], alone.weights, rtol=1e-6, atol=0)


@every_policy
@given_once(EXAMPLES, case=cases())
def test_dead_rows_may_hold_junk(policy: Policy, case: Case) -> None:
    dead = ~case.step.live
    logits = case.routing.logits.clone()
    logits[dead] = torch.tensor(float("nan"))
    junk = Case(replace(case.routing, logits=logits), case.step, case.rule)
    clean, out = run(policy, case), run(policy, junk)
    assert torch.equal(clean.experts[~dead], out.experts[~dead])
    assert torch.equal(clean.weights[~dead], out.weights[~dead])


@every_policy
@given_once(EXAMPLES, case=cases())
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
        single = run(policy, Case(alone.routing, moved, case.rule))
        assert torch.equal(out.experts[rows], single.experts)
        assert torch.allclose(out.weights[rows], single.weights, rtol=1e-6, atol=0)


@every_policy
@given_once(EXAMPLES, case=cases())
def test_rows_of_other_phases_pass_through(policy: Policy, case: Case) -> None:
    if not case.fits(policy):
        return
    assert unchanged(phased(policy, "decode", case), case.routing, ~case.step.decode)
    assert unchanged(phased(policy, "prefill", case), case.routing, case.step.decode)
    assert unchanged(phased(policy, "none", case), case.routing, torch.ones_like(case.step.live))
    assert same(phased(policy, "both", case), run(policy, case))


@every_policy
@given_once(EXAMPLES, case=cases())
def test_mass(policy: Policy, case: Case) -> None:
    """A token keeps its top-K mass (`scaling` if the router renormalises), unless fewer experts run by their own
    weights."""

    def mass(routing: Routing) -> torch.Tensor:
        scale = 1.0 if case.rule.expert_scale is None else case.rule.expert_scale[routing.experts]
        return (routing.weights / scale).sum(-1)

    out = run(policy, case)
    before, after = mass(case.routing), mass(out)
    assert torch.all(out.weights >= 0)
    if policy.weights in ("original", "reference"):
        return  # `test_weights` has their sums
    if policy.name in ("top_k", "lexi") and policy.weights == "renormalize" and not case.rule.renormalize:
        assert torch.all(after <= before * (1 + 1e-6))
    else:
        assert (
            torch.allclose(after, before, rtol=1e-5, atol=1e-7)
            or case.rule.expert_scale is not None
            and (policy.name in ("sere", "reassign"))
        )


@every_policy
@given_once(EXAMPLES, case=cases())
def test_kept_sets_hold_at_least_k_experts_and_small_lanes_are_left_alone(policy: Policy, case: Case) -> None:
    """oea keeps what its tokens insist on, which may be less: as published, such tokens run fewer."""
    if not isinstance(policy, LanePolicy) or not case.fits(policy):
        return
    kept = policy.keep(case.routing, case.step, case.rule)
    sizes = torch.bincount(case.step.lane[case.step.live], minlength=case.step.num_lanes)
    out = run(policy, case)
    for lane in range(case.step.num_lanes):
        rows = (case.step.lane == lane) & case.step.live
        if sizes[lane] < policy.min_batch:
            assert unchanged(out, case.routing, rows)
        elif sizes[lane]:
            assert kept[lane].sum() >= (policy.k0 if isinstance(policy, Oea) and policy.p == 1 else 1)
            assert kept[lane].sum() >= case.routing.top_k or isinstance(policy, Oea)
            if getattr(policy, "warm_up_for", "lane") == "lane":
                assert kept[lane][out.experts[rows]].all(), "a live row left its lane's kept set"


@every_policy
@given_once(EXAMPLES, case=cases())
def test_tokens_stay_within_their_groups_and_run_k_experts(policy: Policy, case: Case) -> None:
    """sere substitutes by similarity alone."""
    if policy.name == "sere" or not case.fits(policy):
        return
    out = run(policy, case)
    choice = case.routing.choice(case.rule)
    assert (choice.gather(-1, out.experts)[out.weights > 0] > -torch.inf).all()
    if isinstance(policy, LanePolicy) and policy.name != "oea" and getattr(policy, "substitute", True):
        assert ((out.weights > 0).sum(-1) == (case.routing.weights > 0).sum(-1)).all()


@examples
@given(case=cases())
def test_no_drop_is_vanilla_bit_for_bit(case: Case) -> None:
    assert same(run(build_policy("no_drop"), case), case.routing)
    assert same(run(build_policy("vanilla"), case), case.routing)


@examples
@given(case=cases())
def test_keeping_all_experts_is_vanilla_bit_for_bit(case: Case) -> None:
    everything = case.routing.num_experts
    for name in ("lynx_v1_latency", "random_keep", "xshare", "static_mask"):
        parameter = "budget" if name == "xshare" else "keep_experts"
        assert same(run(build_policy(name, **{parameter: everything}), case), case.routing)
    assert same(run(build_policy("coverage", tolerance=None, budget=everything), case), case.routing)
    assert same(run(build_policy("keep_ranks", ranks=case.routing.top_k), case), case.routing)
    assert same(run(build_policy("oea", k0=case.routing.top_k), case), case.routing)
    assert same(run(build_policy("top_p", p=1.0), case), case.routing)
    assert same(run(build_policy("min_p", ratio=0.0), case), case.routing)
    assert same(run(build_policy("reassign", fraction=0.0), case), case.routing)
    assert same(run(build_policy("elbow", extra=case.routing.top_k), case), case.routing)
    assert same(run(build_policy("xshare", budget=everything, substitute=False), case), case.routing)
    assert same(run(build_policy("top_k", k=case.routing.top_k), case), case.routing)
