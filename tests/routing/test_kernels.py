"""The fused kernels give what the torch definitions give.

Without a GPU they run under Triton's interpreter (tests/conftest.py), which shows that they compute the right thing;
the last test compiles them for real devices, which shows that they can run there. `TRITON_INTERPRET=0` on a machine
with a GPU runs the compiled kernels instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.routing import Policy, RouterRule, build_policy
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.policies.lynx import Lynx
from tests.routing.kernel_cases import DTYPES, assert_equal, big_case, by_kernels, by_torch, of_type
from tests.routing.laws import POLICIES, Case, cases, same

pytest.importorskip("triton")

SERVED = [policy for policy in POLICIES if policy.name in ("lynx", "oea", "xshare", "coverage", "no_drop")] + [
    build_policy(name, **parameters)
    for name, parameters in [
        ("lynx", {"alpha": 2.0, "beta": None, "bins": "continuous", "min_batch": 1}),
        ("oea", {"k0": 2, "p": 0.4, "k_max": 4, "max_rank": 4}),
        ("xshare", {"budget": 3, "score": "logit", "warm_up": 2, "warm_up_for": "token"}),
        ("xshare", {"budget": 2, "score": "logit", "warm_up": 2, "max_batch": 3}),
        ("coverage", {"tolerance": None, "budget": 3, "utility": "mass"}),
        ("coverage", {"tolerance": 0.2, "guarantee": 2, "power": 1.0}),
        ("coverage", {"tolerance": 0.1, "power": 2.5}),
        ("coverage", {"tolerance": 0.02, "guarantee": 1, "utility": "log"}),
    ]
]


def big_policies(num_experts: int) -> list[Policy]:
    """For K = 8."""
    named = [
        ("no_drop", {}),
        ("lynx", {"alpha": 3.0, "beta": 2}),
        ("lynx", {"alpha": 1.0, "beta": None, "bins": "continuous"}),
        ("oea", {"k0": 3}),
        ("oea", {"k0": 4, "p": 0.3, "k_max": 9, "max_rank": 20}),
        ("xshare", {"budget": num_experts // 3}),
        ("xshare", {"budget": 8, "score": "logit", "warm_up": 2, "warm_up_for": "token"}),
        ("coverage", {"tolerance": 0.2}),
        ("coverage", {"tolerance": 0.05, "utility": "log", "guarantee": 1}),
    ]
    return [build_policy(name, **parameters) for name, parameters in named]


@settings(max_examples=120, deadline=None)
@given(policy=st.sampled_from(SERVED), case=cases(), logits=st.sampled_from(DTYPES), weights=st.sampled_from(DTYPES))
def test_any_policy_rule_and_type(policy: Policy, case: Case, logits: torch.dtype, weights: torch.dtype) -> None:
    case = of_type(case, logits, weights)
    if case.fits(policy):
        assert_equal(policy, case)


@pytest.mark.parametrize("policy", big_policies(64), ids=lambda policy: policy.label)
@pytest.mark.parametrize(("lanes", "dtype"), [(1, torch.float32), (4, torch.bfloat16)])
def test_lanes_in_one_launch_and_in_two(policy: Policy, lanes: int, dtype: torch.dtype) -> None:
    assert_equal(policy, big_case(40, 64, 8, lanes, dtype, rule=RouterRule(renormalize=lanes > 1)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "experts", "lanes"), [(256, 512, 1), (256, 256, 16), (200, 160, 3), (16, 512, 1)])
def test_large_shapes(rows: int, experts: int, lanes: int, dtype: torch.dtype) -> None:
    for policy in big_policies(experts):
        if policy.name == "coverage" and rows * experts > 60_000 and dtype != torch.float32:
            continue  # minutes under the interpreter; the other shapes have it in every type
        assert_equal(policy, big_case(rows, experts, 8, lanes, dtype, rule=RouterRule()))


@pytest.mark.slow
def test_a_large_grouped_router_with_a_bias() -> None:
    bias = torch.randn(256, generator=torch.Generator().manual_seed(1)) * 0.1
    rule = RouterRule(score="sigmoid", scaling=2.5, bias=bias, groups=8, top_groups=4, group_score="top2")
    case = big_case(64, 256, 8, 2, torch.float32, rule=rule)
    for policy in big_policies(256):
        if case.fits(policy):
            assert_equal(policy, case)


@settings(max_examples=10, deadline=None)
@given(case=cases())
def test_keeping_every_expert_is_vanilla_bit_for_bit(case: Case) -> None:
    assert same(by_kernels(build_policy("no_drop"), case), case.routing)


def small() -> Case:
    return big_case(8, 8, 2, 1, torch.float32, rule=RouterRule())


def test_what_the_kernels_do_not_serve_runs_in_torch() -> None:
    class Own(Lynx):
        pass

    case = small()
    assert kernels.select(Own(), case.routing, case.step, case.rule) is None
    assert kernels.select(build_policy("vanilla"), case.routing, case.step, case.rule) is None
    prefill = big_case(1025, 8, 2, 1, torch.float32, rule=RouterRule())
    wide = big_case(4, 1025, 2, 1, torch.float32, rule=RouterRule())
    for case in (prefill, wide):
        assert kernels.select(Lynx(), case.routing, case.step, case.rule) is None
        assert same(by_kernels(Lynx(), case), by_torch(Lynx(), case))


def test_the_setting_decides_who_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    case, marker = small(), small().routing
    monkeypatch.setattr(kernels, "select", lambda *_: marker)
    assert kernels.current_kernel() == "auto"
    assert Lynx()(case.routing, case.step, case.rule) is not marker, "auto on a CPU is torch"
    with kernels.kernel("triton"):
        assert Lynx()(case.routing, case.step, case.rule) is marker
        with kernels.kernel("torch"):
            assert Lynx()(case.routing, case.step, case.rule) is not marker
        assert kernels.current_kernel() == "triton"
    assert kernels.current_kernel() == "auto"


def test_a_setting_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="kernel=cuda: must be one of auto, torch, triton"):
        kernels.set_kernel("cuda")  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.choose, "_installed", lambda: False)
        with pytest.raises(ValueError, match="kernel=triton: triton is not installed"):
            kernels.set_kernel("triton")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_every_variant_compiles_for_a_gpu(arch: str) -> None:
    """In a process of its own: here the kernels are the interpreter's. Needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_selection.py")
    done = subprocess.run([sys.executable, script, arch], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
