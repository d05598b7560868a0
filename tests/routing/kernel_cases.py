"""The selection kernels and the torch definitions on the same routing, and what equal means between them."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from lynx_exp.routing import Policy, RouterRule, Routing, StepContext
from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.backends.triton import kernels
from tests.routing.interpreter import round_as_hardware
from tests.routing.laws import Case, route

round_as_hardware()
ON_GPU = torch.cuda.is_available() and os.environ["TRITON_INTERPRET"] == "0"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ULP = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""How far weights may be apart: sums of K values in another order, then one rounding to the type."""


def big_case(rows: int, experts: int, top_k: int, lanes: int, dtype: torch.dtype, *, rule: RouterRule) -> Case:
    """Live, dead, prefill and decode rows, those of a lane side by side except for a few."""
    generator = torch.Generator().manual_seed(rows + experts + lanes)
    logits = torch.randn(rows, experts, generator=generator) * 2
    lane = torch.arange(rows) * lanes // rows
    strays = torch.rand(rows, generator=generator) < 0.1
    lane[strays] = torch.randint(0, lanes, (rows,), generator=generator)[strays]
    step = StepContext(
        layer=0,
        decode=torch.rand(rows, generator=generator) < 0.9,
        lane=lane,
        live=torch.rand(rows, generator=generator) < 0.9,
        num_lanes=lanes,
        key=torch.arange(lanes),
        row=torch.arange(rows),
    )
    return of_type(Case(route(logits, rule, top_k), step, rule), dtype, dtype)


def of_type(case: Case, logits: torch.dtype, weights: torch.dtype) -> Case:
    """The case as a router of that type would have it."""
    coarse = route(case.routing.logits.to(logits), case.rule, case.routing.top_k)
    return replace(
        case, routing=Routing(logits=coarse.logits, experts=coarse.experts, weights=coarse.weights.to(weights))
    )


def by_torch(policy: Policy, case: Case) -> Routing:
    with pytest.MonkeyPatch.context() as patch, kernels.kernel("torch"):
        patch.setattr(native, "AVAILABLE", False)
        return case.run(policy)


def by_kernels(policy: Policy, case: Case) -> Routing:
    device = "cuda" if ON_GPU else "cpu"
    routing, step, rule = case.routing, case.step, case.rule
    there = Case(
        Routing(
            logits=routing.logits.to(device), experts=routing.experts.to(device), weights=routing.weights.to(device)
        ),
        replace(
            step,
            shared={},
            **{name: getattr(step, name).to(device) for name in ("decode", "lane", "live", "key", "row")},
        ),
        replace(
            rule,
            bias=None if rule.bias is None else rule.bias.to(device),
            expert_scale=None if rule.expert_scale is None else rule.expert_scale.to(device),
        ),
    )
    with kernels.kernel("triton"):
        out = there.run(policy)
    return Routing(logits=routing.logits, experts=out.experts.cpu(), weights=out.weights.cpu())


def assert_equal(policy: Policy, case: Case) -> tuple[Routing, Routing]:
    """(by the kernels, by torch)."""
    ours, theirs = by_kernels(policy, case), by_torch(policy, case)
    assert torch.equal(ours.experts, theirs.experts)
    assert ours.weights.dtype == theirs.weights.dtype
    rtol = ULP[ours.weights.dtype]
    assert torch.allclose(ours.weights.double(), theirs.weights.double(), rtol=rtol, atol=1e-7 if rtol > 1e-6 else 0)
    return ours, theirs
