"""The compiled loops for CPUs, one by one and fused, give what the torch definitions give."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lynx_exp.routing import Policy, RouterRule, Routing, StepContext, build_policy
from lynx_exp.routing.backends.numba import fused, native
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.dispatch import fused_plan
from tests.drawn_once import given_once
from tests.routing.laws import POLICIES, Case, bound, cases, route

PLANNED: dict[str, Callable[[st.DataObject, int, int], dict[str, Any]]] = {
    "no_drop": lambda _data, _experts, _top_k: {},
    "lynx_v1_latency": lambda data, experts, top_k: {"keep_experts": data.draw(st.integers(top_k, experts))},
    "lynx": lambda data, _experts, _top_k: {
        "alpha": data.draw(st.sampled_from([0.7, 1.0, 3.0, 8.0])),
        "beta": data.draw(st.sampled_from([1, 2, 5, 40, None])),
        "bins": data.draw(st.sampled_from(["ceil", "continuous"])),
    },
    "oea": lambda data, experts, top_k: {
        "k0": (k0 := data.draw(st.integers(1, top_k))),
        "k_max": data.draw(st.none() | st.integers(k0, experts)),
    },
    "xshare": lambda data, experts, top_k: {
        "budget": data.draw(st.integers(top_k, experts)),
        "score": data.draw(st.sampled_from(["prob", "logit"])),
        "warm_up": data.draw(st.integers(0, top_k)),
        "max_batch": data.draw(st.none() | st.integers(4, 9)),
    },
    "coverage": lambda data, experts, top_k: {
        "tolerance": data.draw(st.sampled_from([0.02, 0.2, 0.7])),
        "budget": data.draw(st.none() | st.integers(top_k, experts)),
        "utility": data.draw(st.sampled_from(["mass", "log"])),
        "power": data.draw(st.sampled_from([1.0, 2.5, 4.0])),
        "guarantee": data.draw(st.integers(0, top_k)),
    },
    "top_k": lambda data, _experts, top_k: {"k": data.draw(st.integers(1, top_k))},
}
"""Policies that the fused loops know, and settings of theirs for E and K."""


def fresh(routing: Routing) -> Routing:
    """The same, nothing of it computed yet."""
    return Routing(logits=routing.logits, experts=routing.experts, weights=routing.weights)


def by_torch(policy: Policy, case: Case) -> Routing:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", False)
        return Case(fresh(case.routing), replace(case.step, shared={}), case.rule).run(policy)


def acting(case: Case, policy: Policy) -> StepContext:
    """The step with the live rows of lanes that are large enough."""
    live, lane = case.step.live, case.step.lane
    size = torch.bincount(lane[live], minlength=case.step.num_lanes)
    return replace(case.step, live=live & (size >= policy.min_batch)[lane], shared={})


def ulps(a: Tensor, b: Tensor) -> int:
    """How many fp32 numbers lie between numbers of the same sign, at most."""
    return int((a.contiguous().view(torch.int32).long() - b.contiguous().view(torch.int32).long()).abs().max())


@st.composite
def plain_cases(draw: st.DrawFn) -> Case:
    """Plain routers of up to 40 experts, up to 4 lanes; ties, zeros of both signs, dead rows that hold junk."""
    rows, experts, lanes = draw(st.integers(1, 40)), draw(st.integers(2, 40)), draw(st.integers(1, 4))
    top_k = draw(st.integers(1, min(experts, 9)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    logits = torch.randn(rows, experts, generator=generator) * draw(st.sampled_from([0.2, 2.0, 8.0]))
    grain = draw(st.sampled_from([0, 2, 8]))
    if grain:
        logits = (logits * grain).round() / grain
        logits[(logits == 0) & (torch.rand(rows, experts, generator=generator) < 0.5)] = -0.0
    if draw(st.booleans()):
        logits[rows // 2 :] = logits[: rows - rows // 2].clone()
    score = draw(st.sampled_from(["softmax", "softmax", "sigmoid"]))
    rule = RouterRule(score=score, renormalize=draw(st.booleans()))
    live = torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    step = StepContext(
        layer=0,
        decode=torch.ones(rows, dtype=torch.bool),
        lane=torch.randint(0, lanes, (rows,), generator=generator),
        live=live,
        num_lanes=lanes,
        key=torch.arange(lanes),
        row=torch.arange(rows),
    )
    routing = route(logits, rule, top_k)
    if draw(st.booleans()):
        logits[~live] = torch.nan
    return Case(routing, step, rule)


@pytest.mark.parametrize("name", PLANNED)
@settings(max_examples=150, deadline=None)
@given(case=plain_cases(), data=st.data())
def test_fused_is_the_torch_definition(name: str, case: Case, data: st.DataObject) -> None:
    parameters = PLANNED[name](data, case.routing.num_experts, case.routing.top_k)
    policy = build_policy(name, **parameters, min_batch=data.draw(st.integers(1, 4)))
    before = case.routing
    assert fused_plan(policy) is not None
    out = fused.select(fused_plan(policy), before, case.step, case.rule)
    assert out is not None
    plain = by_torch(policy, case)
    assert out.experts.shape == out.weights.shape and out.experts.shape[1] <= plain.experts.shape[1]
    width = out.experts.shape[1]  # where nothing acts, the router's own slots
    assert torch.equal(out.experts, plain.experts[:, :width]) and not plain.weights[:, width:].any()
    loops = bound(policy, case.shape).route(fresh(before), acting(case, policy), case.rule)
    assert torch.equal(out.weights, loops.weights[:, :width])
    # torch adds up to four numbers in order, more as its vectors give: two orders of n differ by n at most
    added = max(before.top_k, width)
    assert ulps(out.weights, plain.weights[:, :width]) <= (1 if added <= 4 else max(8, added))
    kept = (out.experts[:, : before.top_k] == before.experts).all(-1) & ~out.weights[:, before.top_k :].any(-1)
    kept &= (out.weights[:, : before.top_k] > 0).eq(before.weights > 0).all(-1)
    kept |= ~case.step.live
    if (getattr(policy, "k_max", None) or before.top_k) == before.top_k:
        assert torch.equal(out.weights[kept, : before.top_k], before.weights[kept])
    if name == "no_drop":
        assert torch.equal(out.experts, before.experts) and torch.equal(out.weights, before.weights)


@pytest.mark.parametrize("weights", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PLANNED)
def test_weights_of_other_types_keep_it(name: str, weights: torch.dtype) -> None:
    case = plain()
    case = replace(case, routing=replace(case.routing, weights=case.routing.weights.to(weights)))
    out, by_definition = case.run(build_policy(name)), by_torch(build_policy(name), case)
    assert out.weights.dtype == weights
    assert torch.equal(out.experts, by_definition.experts) and torch.equal(out.weights, by_definition.weights)


def plain(rule: RouterRule = RouterRule(), rows: int = 16) -> Case:  # noqa: B008  # frozen
    """The shape of a decode step of the bundled model."""
    logits = torch.randn(rows, 16, generator=torch.Generator().manual_seed(3)) * 2
    step = StepContext(
        layer=0,
        decode=torch.ones(rows, dtype=torch.bool),
        lane=torch.zeros(rows, dtype=torch.long),
        live=torch.ones(rows, dtype=torch.bool),
        num_lanes=1,
        key=torch.arange(1),
        row=torch.arange(rows),
    )
    return Case(route(logits, rule), step, rule)


def select(case: Case, policy: Policy) -> Routing | None:
    assert fused_plan(policy) is not None
    return fused.select(fused_plan(policy), case.routing, case.step, case.rule)


def test_what_the_fused_loops_leave_to_the_others() -> None:
    lynx, case = build_policy("lynx"), plain()
    assert select(case, lynx) is not None
    for rule in (
        RouterRule(bias=torch.ones(16)),
        RouterRule(expert_scale=torch.ones(16)),
        RouterRule(groups=4, top_groups=2),
        RouterRule(scaling=2.5),
    ):
        assert select(plain(rule), lynx) is None
    assert select(replace(case, routing=replace(case.routing, logits=case.routing.logits.double())), lynx) is None
    few = replace(case.routing, logits=case.routing.logits[:9], experts=case.routing.experts[:9])
    assert select(replace(case, routing=replace(few, weights=few.weights[:9])), lynx) is None, "rows of another step"
    assert fused_plan(build_policy("oea", p=0.6)) is None and fused_plan(build_policy("oea", max_rank=3)) is None
    assert (
        fused_plan(build_policy("xshare", warm_up_for="token")) is None
        and fused_plan(build_policy("random_keep")) is None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", False)
        assert select(case, lynx) is None
    with kernels.kernel("triton"):
        assert select(case, lynx) is None


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Other(type(build_policy("lynx"))):  # type: ignore[misc]
        pass

    assert fused_plan(Other()) is None


def test_rows_and_tensors_may_lie_anywhere() -> None:
    """Slices and transposed tensors, whose numbers are not side by side."""
    case, lynx = plain(), build_policy("lynx")
    straight = select(case, lynx)
    spread = Routing(
        logits=case.routing.logits.T.contiguous().T,
        experts=torch.stack([case.routing.experts] * 2, -1)[..., 0],
        weights=torch.stack([case.routing.weights] * 2, -1)[..., 1],
    )
    live = torch.stack([case.step.live] * 2, -1)[:, 0]
    lane = torch.stack([case.step.lane, case.step.lane + 9], -1)[:, 0]
    out = select(Case(spread, replace(case.step, live=live, lane=lane, shared={}), case.rule), lynx)
    assert straight is not None and out is not None
    assert torch.equal(out.experts, straight.experts) and torch.equal(out.weights, straight.weights)


def test_lanes_too_small_return_the_routing_itself_and_cost_no_softmax_in_later_layers() -> None:
    case, lynx = plain(rows=3), build_policy("lynx", min_batch=4)
    assert select(case, lynx) is case.routing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "softmax", None)
        assert select(case, lynx) is case.routing


@pytest.mark.parametrize("name", PLANNED)
def test_a_layer_takes_few_python_frames(name: str) -> None:
    """Each is memory to touch, and between two layers of a step the experts have emptied the caches."""
    policy, case, frames = build_policy(name), plain(), []
    policy(case.routing, case.step, case.rule)
    sys.setprofile(lambda frame, event, _: frames.append(frame.f_code.co_name) if event == "call" else None)
    try:
        policy(case.routing, case.step, case.rule)
    finally:
        sys.setprofile(None)
    assert frames[:3] == ["__call__", "select", "select"] and len(frames) <= 6, frames


def test_a_policy_that_ran_can_be_sent_elsewhere() -> None:
    case, lynx = plain(), build_policy("lynx")
    case.run(lynx)
    there = pickle.loads(pickle.dumps(lynx))
    assert there == lynx and there.label == lynx.label and fused_plan(there) == fused_plan(lynx)


def test_without_numba_policies_run_by_torch() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from tests.routing.test_native import by_torch, native, plain, select\n"
        "from lynx_exp.routing import build_policy\n"
        "case, lynx = plain(), build_policy('lynx')\n"
        "assert not native.AVAILABLE and select(case, lynx) is None\n"
        "assert (case.run(lynx).experts != case.routing.experts).any()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_loops_are_what_this_machine_runs() -> None:
    """Otherwise the comparison below would compare torch with itself."""
    assert native.AVAILABLE


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@given_once(100, case=cases())
def test_torch_and_loops_agree(policy: Policy, case: Case) -> None:
    if not case.fits(policy):
        return
    loops = case.run(policy)
    plain = by_torch(policy, case)
    assert torch.equal(loops.experts, plain.experts)
    assert torch.allclose(loops.weights, plain.weights, rtol=1e-6, atol=0)


def test_half_precision_and_other_devices_take_the_torch_path() -> None:
    assert native.usable(torch.zeros(2))
    assert not native.usable(torch.zeros(2, dtype=torch.bfloat16))
    assert not native.usable(torch.zeros(2, dtype=torch.float16))
    assert not native.usable(torch.zeros(2, device="meta"))
