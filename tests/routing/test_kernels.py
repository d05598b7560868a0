"""The fused kernels give what the torch definitions give.

Without a GPU they run under Triton's interpreter (tests/conftest.py), which shows that they compute the right thing;
the last test compiles them for real devices, which shows that they can run there. `TRITON_INTERPRET=0` on a machine
with a GPU runs the compiled kernels instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.routing import Policy, RouterRule, Routing, StepContext, build_policy, kernels, native
from lynx_exp.routing.policies.lynx import Lynx
from tests.routing.laws import POLICIES, Case, cases, route, same

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
ON_GPU = torch.cuda.is_available() and os.environ["TRITON_INTERPRET"] == "0"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ULP = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""How far weights may be apart: sums of K values in another order, then one rounding to the type."""


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


def assert_equal(policy: Policy, case: Case) -> None:
    ours, theirs = by_kernels(policy, case), by_torch(policy, case)
    assert torch.equal(ours.experts, theirs.experts)
    assert ours.weights.dtype == theirs.weights.dtype
    rtol = ULP[ours.weights.dtype]
    assert torch.allclose(ours.weights.double(), theirs.weights.double(), rtol=rtol, atol=1e-7 if rtol > 1e-6 else 0)


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
    assert kernels.select(build_policy("top_k", k=1), case.routing, case.step, case.rule) is None
    prefill = big_case(1025, 8, 2, 1, torch.float32, rule=RouterRule())
    wide = big_case(4, 1025, 2, 1, torch.float32, rule=RouterRule())
    for case in (prefill, wide):
        assert kernels.select(Lynx(), case.routing, case.step, case.rule) is None
        assert same(by_kernels(Lynx(), case), by_torch(Lynx(), case))


@pytest.mark.parametrize(("rows", "lanes", "launches"), [(16, 1, 1), (64, 4, 1), (17, 1, 2), (256, 2, 2)])
def test_small_lanes_take_one_launch_and_large_ones_two(
    monkeypatch: pytest.MonkeyPatch, rows: int, lanes: int, launches: int
) -> None:
    from lynx_exp.routing.kernels import selection

    grids = []

    class Counted:
        def __getitem__(self, grid):
            return lambda **_: grids.append(grid)

    monkeypatch.setattr(selection, "lane_kernel", Counted())
    monkeypatch.setattr(selection, "rows_kernel", Counted())
    case = big_case(rows, 8, 2, lanes, torch.float32, rule=RouterRule())
    kernels.select(Lynx(), case.routing, case.step, case.rule)
    assert len(grids) == launches and grids[0] == (lanes,)


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


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lynx_exp.routing.kernels.launches import lane_kernel, rows_kernel

types = {"choice_ptr": "*fp32", "view_ptr": "*fp32", "scores_ptr": "*fp32", "weights_ptr": "*bf16",
         "scale_ptr": "*fp32", "experts_ptr": "*i64", "lane_ptr": "*i64", "live_ptr": "*i1", "numbers_ptr": "*fp64",
         "state_ptr": "*fp64", "kept_ptr": "*i8", "out_experts_ptr": "*i64", "out_weights_ptr": "*bf16",
         "scaling": "fp32"}
sizes = dict(E=60, K=6, SLOTS=7, W=7, OWN_FIRST=True, RANKED=True, RENORMALIZE=False, SCALED=True, BT=16, BE=64, BW=8)
variants = [(lane_kernel, dict(sizes, KEEP=keep, VARIANT=variant, REMAPS=remaps, BK=8))
            for keep in range(4) for variant in ((0, 1, 4, -1) if keep == 3 else (0, 1)) for remaps in (True, False)]
variants.append((rows_kernel, sizes))
for arch in (80, 90):
    for kernel, constants in variants:
        signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
        source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
        options = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
        built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        assert built.asm["cubin"]
"""


@pytest.mark.slow
def test_every_variant_compiles_for_a_gpu() -> None:
    """In a process of its own: here the kernels are the interpreter's. Needs no GPU."""
    code = "import os; os.environ.pop('TRITON_INTERPRET', None)\n" + COMPILE
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
