"""The router's rule in one launch gives what the rule gives in torch, its ties going to the lower expert.

Under Triton's interpreter, as in `test_kernels`; `compile_selection.py` compiles it for real devices.

T token rows, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lynx_exp.routing import RouterRule, Routing, build_policy
from lynx_exp.routing.backends.triton import kernels
from tests.routing.kernel_cases import DTYPES, ON_GPU, big_case
from tests.routing.laws import Case

pytest.importorskip("triton")
from lynx_exp.routing.backends.triton.kernels.route import route

ROUNDED = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Relative: some roundings to float32, then one to the type."""
NAN = float("nan")


class Router(NamedTuple):
    logits: Tensor
    rule: RouterRule
    top_k: int


def in_order(values: Tensor) -> list[int]:
    """Indices of a row, largest first, NaN before all, ties by index: by Python's own sort."""
    keys = [float("inf") if value != value else value for value in values.tolist()]
    odd = [value != value for value in values.tolist()]
    return sorted(range(len(keys)), key=lambda index: (not odd[index], -keys[index], index))


def choice_of(logits: Tensor, rule: RouterRule) -> Tensor:
    """`rule.choice`, where groups that tie are taken by index, too; torch.topk leaves that open."""
    open_rule = replace(rule, groups=1, top_groups=1)
    scores = rule.scores(logits)
    choice = open_rule.choice(logits.float(), scores).clone()
    if rule.grouped:
        by = (scores if rule.bias is None else choice).unflatten(-1, (rule.groups, -1))
        best = by.amax(-1) if rule.group_score == "max" else by.topk(2, -1).values.sum(-1)
        for row, groups in enumerate(best):
            for closed in in_order(groups)[rule.top_groups :]:
                choice[row].view(rule.groups, -1)[closed] = -torch.inf
    return choice


@st.composite
def routers(draw: st.DrawFn) -> Router:
    """Any rule; half of the cases have coarse logits, for ties, and some have numbers that no softmax likes."""
    groups = draw(st.sampled_from([1, 1, 2, 3, 8]))
    size = draw(st.integers(2, 64)) if groups > 1 else draw(st.integers(4, 512))
    num_experts, generator = groups * size, torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    top_groups = draw(st.integers(1, groups))
    logits = torch.randn(draw(st.integers(1, 4)), num_experts, generator=generator) * draw(
        st.sampled_from([0.1, 2, 30])
    )
    if draw(st.booleans()):
        logits = (logits * 2).round() / 2
    bias = torch.randn(num_experts, generator=generator) * 0.3 if draw(st.booleans()) else None
    rule = RouterRule(
        score=draw(st.sampled_from(["softmax", "sigmoid", "sqrtsoftplus"])),
        renormalize=draw(st.booleans()),
        scaling=draw(st.sampled_from([1.0, 2.5])),
        bias=bias,
        bias_on=draw(st.sampled_from(["scores", "logits"])),
        groups=groups,
        top_groups=top_groups,
        group_score=draw(st.sampled_from(["max", "top2"])),
        expert_scale=torch.rand(num_experts, generator=generator) + 0.5 if draw(st.booleans()) else None,
    )
    return Router(logits, rule, draw(st.integers(1, min(22, top_groups * size))))


def made(router: Router, dtype: torch.dtype) -> Routing:
    logits, rule, top_k = router
    device = "cuda" if ON_GPU else "cpu"
    moved = {name: value.to(device) for name, value in vars(rule).items() if isinstance(value, Tensor)}
    there = replace(rule, **moved) if moved else rule
    found = route(logits.to(device), there, top_k, dtype)
    back = Routing(logits=found.logits.cpu(), experts=found.experts.cpu(), weights=found.weights.cpu())
    back.remember(rule, scores=found.scores(there).cpu(), choice=found.choice(there).cpu())
    return back


def near(ours: Tensor, theirs: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    return torch.allclose(ours.double(), theirs.double(), rtol=ROUNDED[dtype], atol=1e-7, equal_nan=True)


@settings(max_examples=120, deadline=None)
@given(router=routers(), logits=st.sampled_from(DTYPES), weights=st.sampled_from(DTYPES))
def test_any_rule_and_type(router: Router, logits: torch.dtype, weights: torch.dtype) -> None:
    router = router._replace(logits=router.logits.to(logits))
    given, rule, top_k = router
    found = made(router, weights)
    assert found.weights.dtype == weights and found.experts.dtype == torch.int64
    assert found.logits.dtype == torch.float32 and torch.equal(found.logits, given.float())
    assert near(found.scores(rule), rule.scores(given))
    choice = choice_of(given, rule)
    assert near(found.choice(rule), choice) or tied_groups(given, rule)
    ranked = choice if rule.bias is None or rule.bias_on == "logits" else found.choice(rule)  # made of rounded scores
    assert found.experts.tolist() == [in_order(row)[:top_k] for row in ranked]
    expected = rule.scores(given).gather(-1, found.experts)
    normal = has_mass(rule, given, found.experts)
    if rule.renormalize:
        expected = expected / expected.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    expected = expected * rule.scaling
    if rule.expert_scale is not None:
        expected = expected * rule.expert_scale[found.experts]
    assert near(found.weights[normal], expected[normal].to(weights), weights)
    assert not (found.weights[~normal].float() < 0).any()


def has_mass(rule: RouterRule, logits: Tensor, experts: Tensor) -> Tensor:
    """`[T]`: whether the scores of a row's experts sum to a normal number (or NaN). Below that an `exp` may give 0
    for a denormal number, as a GPU's does, and a quotient of two such numbers says nothing."""
    total = rule.scores(logits).gather(-1, experts).sum(-1)
    return ~(total < torch.finfo(torch.float32).tiny)


def tied_groups(logits: Tensor, rule: RouterRule) -> bool:
    """Whether scores that are equal, or nearly so, decide about a group."""
    if not rule.grouped:
        return False
    by = (rule.scores(logits) if rule.bias is None else choice_of(logits, replace(rule, groups=1))).unflatten(
        -1, (rule.groups, -1)
    )
    best = (by.amax(-1) if rule.group_score == "max" else by.topk(2, -1).values.sum(-1)).sort(-1).values
    edge = rule.groups - rule.top_groups
    return bool(((best[:, edge] - best[:, edge - 1]) <= 1e-6 * best.abs().amax(-1)).any())


@settings(max_examples=40, deadline=None)
@given(router=routers())
def test_the_rule_in_torch_is_the_same(router: Router) -> None:
    logits, rule, top_k = router
    if tied_groups(logits, rule):
        return
    found, (experts, weights) = made(router, torch.float32), rule.route(logits, top_k)
    choice = choice_of(logits, rule)
    assert near(choice.gather(-1, found.experts), choice.gather(-1, experts)), "other experts only where they tie"
    same = (found.experts == experts).all(-1) & has_mass(rule, logits, experts)
    assert near(found.weights[same], weights[same])


RULES: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {}),
    ("softmax", {"renormalize": False}),
    ("sigmoid", {"scaling": 2.5}),
    ("sqrtsoftplus", {}),
]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize(("score", "more"), RULES)
def test_rows_of_infinities_and_nan(score: Any, more: dict[str, Any]) -> None:
    inf = float("inf")
    logits = torch.tensor(
        [
            [0.0, -inf, 1.0, -inf, 0.5, -1.0],
            [-inf, -inf, -inf, -inf, -inf, -inf],
            [1.0, inf, 2.0, -inf, inf, 0.0],
            [0.0, NAN, 3.0, 1.0, NAN, -inf],
            [1e30, -1e30, 50.0, -50.0, 200.0, -200.0],
            [-0.0, 0.0, -0.0, 0.0, -1.0, -2.0],
        ]
    )
    rule = RouterRule(score=score, **more)
    found = made(Router(logits, rule, 3), torch.float32)
    experts, weights = rule.route(logits, 3)
    assert found.experts.tolist() == [[2, 4, 0], [0, 1, 2], [1, 4, 2], [1, 4, 2], [0, 4, 2], [0, 1, 2]]
    assert torch.equal(found.experts, experts)
    assert near(found.weights, weights)
    assert near(found.scores(rule), rule.scores(logits))
    assert found.weights[3].isnan().all() or not rule.renormalize


def test_a_nan_opens_its_group_first() -> None:
    logits = torch.tensor([[0.0, 1.0, 5.0, 6.0, NAN, -3.0, 2.0, 2.0]])
    rule = RouterRule(score="sigmoid", groups=4, top_groups=2)
    assert made(Router(logits, rule, 4), torch.float32).experts.tolist() == [[4, 3, 2, 5]]


def test_no_rows_and_one_expert_of_each() -> None:
    rule = RouterRule()
    assert made(Router(torch.empty(0, 8), rule, 2), torch.bfloat16).experts.shape == (0, 2)
    found = made(Router(torch.randn(3, 4), rule, 4), torch.float32)
    assert found.experts.sort(-1).values.tolist() == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("name", ["lynx", "oea", "coverage", "lynx_v1_latency"])
@pytest.mark.parametrize("kind", ["plain", "biased"])
def test_a_policy_selects_the_same_from_what_the_router_leaves_it(name: str, kind: str) -> None:
    """Scores and choice come with the routing: no softmax of its own."""
    bias = torch.randn(32, generator=torch.Generator().manual_seed(3)) * 0.1
    rule = RouterRule(score="sigmoid", bias=bias) if kind == "biased" else RouterRule()
    case = big_case(12, 32, 4, 2, torch.float32, rule=rule)
    policy = build_policy(name, **{"lynx_v1_latency": {"keep_experts": 9}, "oea": {"k0": 2}}.get(name, {}))
    given = made(Router(case.routing.logits, rule, 4), torch.float32)
    with kernels.kernel("triton"):
        alone = Case(Routing(logits=given.logits, experts=given.experts, weights=given.weights), case.step, rule)
        ours, theirs = policy(given, case.step, rule), alone.run(policy)
    assert torch.equal(ours.experts, theirs.experts)
    assert near(ours.weights, theirs.weights)
