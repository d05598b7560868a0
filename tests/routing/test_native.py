"""The compiled loops for CPUs give what the torch definitions give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from lynx_exp.routing import Policy, Routing, native
from tests.routing.laws import POLICIES, Case, cases


def test_the_loops_are_what_this_machine_runs() -> None:
    """Otherwise the comparison below would compare torch with itself."""
    assert native.AVAILABLE


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_torch_and_loops_agree(policy: Policy, case: Case) -> None:
    if not case.fits(policy):
        return
    loops = case.run(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", False)
        fresh = Routing(logits=case.routing.logits, experts=case.routing.experts, weights=case.routing.weights)
        plain = Case(fresh, replace(case.step, shared={}), case.rule).run(policy)
    assert torch.equal(loops.experts, plain.experts)
    assert torch.allclose(loops.weights, plain.weights, rtol=1e-6, atol=0)


def test_half_precision_and_other_devices_take_the_torch_path() -> None:
    assert native.usable(torch.zeros(2))
    assert not native.usable(torch.zeros(2, dtype=torch.bfloat16))
    assert not native.usable(torch.zeros(2, dtype=torch.float16))
    assert not native.usable(torch.zeros(2, device="meta"))
