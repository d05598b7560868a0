"""Every policy of the table has a kernel, and it gives what the policy's torch definition gives.

Under Triton's interpreter, as in `test_kernels`, which has the larger shapes of the policies that it began with.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.routing import Policy, RouterRule, StepContext, build_policy
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.ops.weigh import OWN_WAY
from tests.routing.kernel_cases import DTYPES, assert_equal, big_case, by_kernels, of_type
from tests.routing.laws import NUM_LAYERS, POLICIES, Case, bound, cases, route, rules, same, widened

pytest.importorskip("triton")

MORE: list[tuple[str, dict[str, Any]]] = [
    ("keep_ranks", {"ranks": 3}),
    ("top_k", {"k": 3, "min_batch": 2}),
    ("deny_rank", {"rank": 2}),
    ("deny_rank", {"rank": 2, "mode": "drop"}),
    ("lynx_v1_latency", {"keep_experts": 7, "min_batch": 1}),
    ("lynx_v1_accuracy", {"confidence": 0.0, "min_experts": 1}),
    ("lynx_v1_accuracy", {"confidence": 0.05, "min_experts": 12}),
    ("random_keep", {"keep_experts": 9, "seed": 2**31 - 1}),
    ("min_p", {"ratio": 1.0}),
    ("naee", {"strength": 0.4}),
    ("static_mask", {"keep_experts": 6}),
    ("top_p", {"p": 1.0}),
    ("sere", {"primary": 2, "threshold": 0.97, "metric": "cosine"}),
    ("reassign", {"fraction": 1.0, "first_rank": 1, "seed": 2**31 - 1}),
    ("reassign", {"fraction": 0.3, "gate": "low", "threshold": 0.02}),
    ("lynx", {"alpha": 2.0, "beta": None, "bins": "continuous", "min_batch": 1}),
    ("oea", {"k0": 3, "p": 0.4, "k_max": 7, "max_rank": 6}),
    ("oea", {"k0": 2, "k_max": 9}),
    ("xshare", {"budget": 8, "score": "logit", "warm_up": 2, "warm_up_for": "token"}),
    ("xshare", {"budget": 7, "warm_up": 3, "max_batch": 8}),
]
SERVED = [policy for policy in POLICIES if policy.name not in ("vanilla", "coverage")]
SERVED += [build_policy(name, **given) for name, given in MORE]
"""`coverage` is in `test_kernels`, and takes long."""


@st.composite
def wide_cases(draw: st.DrawFn) -> Case:
    """K up to 6 and rows enough for several blocks, so that lanes are served whole, and spread over programs."""
    rows, experts, lanes = draw(st.integers(1, 45)), draw(st.integers(6, 33)), draw(st.sampled_from([1, 1, 2, 4]))
    top_k = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    logits = torch.randn(rows, experts, generator=generator) * 2
    if draw(st.booleans()):
        logits = (logits * 2).round() / 2
    rule = draw(rules(experts, generator))
    if rule.grouped and experts // rule.groups * rule.top_groups < top_k:
        rule = RouterRule(score=rule.score, renormalize=rule.renormalize)

    def some(share: float) -> torch.Tensor:
        return torch.rand(rows, generator=generator) < share

    return Case(
        route(logits, rule, top_k),
        StepContext(
            layer=draw(st.integers(0, NUM_LAYERS - 1)),
            decode=some(0.8),
            lane=torch.randint(0, lanes, (rows,), generator=generator),
            live=some(draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))),
            num_lanes=lanes,
            key=torch.randint(-(2**63), 2**63 - 1, (lanes,), generator=generator),
            row=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        ),
        rule,
    )


@settings(max_examples=40, deadline=None)
@given(policy=st.sampled_from(SERVED), case=cases(), logits=st.sampled_from(DTYPES), weights=st.sampled_from(DTYPES))
def test_any_policy_rule_and_type(policy: Policy, case: Case, logits: torch.dtype, weights: torch.dtype) -> None:
    case = of_type(case, logits, weights)
    if case.fits(policy):
        assert_equal(policy, case)


@settings(max_examples=50, deadline=None)
@given(policy=st.sampled_from(SERVED), case=wide_cases(), logits=st.sampled_from(DTYPES))
def test_lanes_of_many_rows_and_more_experts_a_token(policy: Policy, case: Case, logits: torch.dtype) -> None:
    case = of_type(case, logits, torch.float32)
    if case.fits(policy):
        ours, theirs = assert_equal(policy, case)
        top_k = case.routing.top_k
        before = case.routing
        untouched = (ours.experts[:, :top_k] == before.experts).all(-1)
        untouched &= (theirs.weights[:, :top_k] == before.weights).all(-1)
        assert torch.equal(ours.weights[untouched], theirs.weights[untouched]), "rows that stay, stay to the bit"
        divides = case.rule.renormalize or case.rule.expert_scale is not None
        copies = policy.name == "sere" or getattr(policy, "new_weight", None) == "slot"
        copies = copies and policy.weights in OWN_WAY
        if copies or (policy.name == "top_k" and not divides):
            assert same(ours, theirs)


@pytest.mark.parametrize(("rows", "top_k", "lanes"), [(24, 4, 1), pytest.param(36, 2, 2, marks=pytest.mark.slow)])
def test_every_policy_over_several_blocks_of_rows(rows: int, top_k: int, lanes: int) -> None:
    """More than 16 rows a lane: what the law above draws now and then."""
    case = big_case(rows, 16, top_k, lanes, torch.float32, rule=RouterRule())
    for policy in SERVED:
        if case.fits(policy):
            assert_equal(policy, case)


def test_a_gap_between_two_values_of_its_type_is_rounded_to_even() -> None:
    """3.890625 - 8.875 is -4.984375, which lies between bfloat16's -5 and -4.96875: the fifth bin. In the fourth, which
    has expert 2, the other row's wish would put it first."""
    logits = torch.tensor([[8.875, 3.890625, 3.90625, -9.0], [8.875, 8.8125, -9.0, -9.0]])
    rows = torch.arange(2)
    step = StepContext(
        layer=0, decode=rows >= 0, lane=rows * 0, live=rows >= 0, num_lanes=1, key=torch.zeros(1).long(), row=rows
    )
    case = of_type(Case(route(logits, RouterRule(), 2), step, RouterRule()), torch.bfloat16, torch.bfloat16)
    ours, _ = assert_equal(build_policy("lynx", alpha=1.0, beta=None, min_batch=2), case)
    assert set(ours.experts[0].tolist()) == {0, 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "experts", "lanes", "dtype"),
    [
        (256, 512, 1, torch.bfloat16),  # minutes under the interpreter
        (256, 128, 16, torch.float16),
        (200, 160, 3, torch.float32),
        *((64, 128, 1, dtype) for dtype in DTYPES),
    ],
    ids=str,
)
def test_large_shapes(rows: int, experts: int, lanes: int, dtype: torch.dtype) -> None:
    case = big_case(rows, experts, 8, lanes, dtype, rule=RouterRule(renormalize=lanes > 1))
    for policy in SERVED:
        if case.fits(policy):
            assert_equal(policy, case)


def run_in_torch(policy: Policy) -> bool:
    """Whether the kernels leave a small decode step of this policy to its torch definition."""
    case = big_case(8, 16, 2, 2, torch.float32, rule=RouterRule())
    each = bound(policy, case.shape)
    each = getattr(each, "policies", (each,))[0]
    with kernels.kernel("triton"):
        return kernels.select(each, case.routing, case.step, case.rule) is None


WITH_KERNEL = {
    *("lynx", "lynx_v1_latency", "lynx_v1_accuracy", "oea", "sere", "no_drop", "random_keep", "reassign"),
    *("top_k", "keep_ranks", "deny_rank", "lexi", "min_p", "naee", "top_p", "static_mask"),
}


def test_who_has_no_kernel() -> None:
    """vanilla decides nothing; the others say so. A policy that is added runs as torch code until it has a kernel."""
    torch_alone = [policy for policy in POLICIES if run_in_torch(policy)]
    names = {policy.name for policy in torch_alone}
    assert names >= {"vanilla", "elbow", "xshare"}
    assert not names & WITH_KERNEL
    assert not any(getattr(policy, "substitute", False) for policy in torch_alone)
    assert "elbow selects in torch (16 experts, top-2): it has no kernel" in kernels.fallback_notes(
        build_policy("elbow")
    )
    assert kernels.fallback_notes(build_policy("xshare")) == []


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        ("coverage", ["lane", "rows"], ["lane", "rows"]),
        ("lynx", ["lane_block"], ["sum", "vote", "lane_block"]),
        ("lynx_v1_latency", ["lane_block"], ["sum", "lane_block"]),
        ("random_keep", ["lane_block"], ["lane_block"]),
        ("sere", ["lane_block"], ["sum", "lane_block"]),
        ("top_k", ["drop"], ["drop"]),
        ("deny_rank", ["replace"], ["replace"]),
        ("reassign", ["reassign"], ["reassign"]),
    ],
)
def test_launches(monkeypatch: pytest.MonkeyPatch, name: str, small: list[str], large: list[str]) -> None:
    """Of steps of up to 16 rows, and of larger ones, whose rows are spread over programs."""
    from lynx_exp.routing.backends.triton.kernels import by_row, selection

    done: list[str] = []

    class Counted:
        def __init__(self, kernel: str) -> None:
            self.kernel = kernel

        def __getitem__(self, _grid: object) -> Any:
            return lambda **_: done.append(self.kernel)

    for module in (selection, by_row):
        for attribute in [attribute for attribute in vars(module) if attribute.endswith("_kernel")]:
            monkeypatch.setattr(module, attribute, Counted(attribute.removesuffix("_kernel")))
    for rows, lanes, expected in [(16, 1, small), (16, 4, small), (64, 4, large), (17, 1, large), (256, 2, large)]:
        done.clear()
        case = big_case(rows, 16, 2, lanes, torch.float32, rule=RouterRule())
        kernels.select(bound(build_policy(name), case.shape), case.routing, case.step, case.rule)
        assert done == expected


def test_one_row_alone_in_its_lane_and_none_live() -> None:
    """Lanes without live rows keep nothing, and their rows come back as they were."""
    for live in (True, False):
        case = big_case(3, 12, 4, 3, torch.float32, rule=RouterRule())
        case = replace(case, step=replace(case.step, live=torch.tensor([live] * 3), lane=torch.tensor([2, 0, 2])))
        for policy in SERVED:
            if case.fits(policy):
                assert_equal(policy, case)
                if not live:
                    assert same(by_kernels(policy, case), widened(case.routing, getattr(policy, "k_max", None) or 0))
