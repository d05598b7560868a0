"""Rows left with experts whose scores are 0, or nearly: weights are finite on every path."""

from __future__ import annotations

import pytest
import torch

from lynx_exp.routing import Policy, RouterRule, StepContext, build_policy
from tests.drawn_once import given_once
from tests.routing.kernel_cases import by_kernels, by_torch
from tests.routing.laws import POLICIES, Case, route, vanishing_cases


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@given_once(60, case=vanishing_cases())
def test_weights_are_finite(policy: Policy, case: Case) -> None:
    if case.fits(policy):
        fast, slow = case.run(policy), by_torch(policy, case)
        assert torch.isfinite(fast.weights).all() and torch.isfinite(slow.weights).all()
        assert torch.equal(fast.experts, slow.experts)
        assert torch.allclose(fast.weights, slow.weights, rtol=2e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:overflow encountered in divide")  # NumPy's, in Triton's interpreter: it is capped
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(
    "policy",
    [build_policy("xshare", budget=4, warm_up=0), build_policy("lynx_v1_latency", keep_experts=4)],
    ids=lambda policy: policy.name,
)
def test_kept_scores_that_vanish_weigh_nothing(policy: Policy, renormalize: bool) -> None:
    """Three rows outvote the first, for which a sigmoid of what they keep is 0. A mass of 9.98, over the smallest
    normal number in place of that sum, was infinite, and its product with 0 no number."""
    pytest.importorskip("triton")
    logits = torch.full((4, 8), -110.0)
    logits[0, :4] = logits[1:, 4:] = torch.tensor([9.0, 8.0, 7.0, 6.0])
    rule = RouterRule(score="sigmoid", renormalize=renormalize, scaling=2.5 if not renormalize else 16.0)
    routing = route(logits, rule, top_k=4)
    rows = torch.arange(4)
    step = StepContext(
        layer=0, decode=rows >= 0, lane=rows * 0, live=rows >= 0, num_lanes=1, key=torch.arange(1), row=rows
    )
    case = Case(routing, step, rule)
    for out in (policy(routing, step, rule), by_torch(policy, case), by_kernels(policy, case)):
        assert out.experts[0].tolist() == [4, 5, 6, 7]
        assert out.weights[0].tolist() == [0.0] * 4
        assert torch.equal(out.weights[1:], routing.weights[1:])
