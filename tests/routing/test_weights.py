"""What experts weigh once others run: each of `weights=` against its formula in NumPy, what holds between them, and
what is refused."""

from __future__ import annotations

from dataclasses import replace
from math import fsum

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.routing import ModelShape, Policy, RouterRule, Routing, build_policy
from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.ops.weigh import Weights, weigh
from tests.routing.laws import POLICIES, REPRESENTATIVES, Case, cases, same
from tests.routing.test_golden import LOGITS, RULE, STEP, vanilla

examples = settings(max_examples=60, deadline=None)
OTHERS: list[Weights] = ["original", "mass", "reference"]


def by_hand(case: Case, after: Routing, weights: str, k2: int) -> list[list[float]]:
    """The weights that the formula gives: one row, slot and expert at a time, in float64."""
    rule, before, found = case.rule, case.routing, []
    scores = rule.scores(before.logits).double().tolist()
    choice = rule.choice(before.logits, rule.scores(before.logits)).tolist()
    for t, experts in enumerate(after.experts.tolist()):
        own = before.experts[t].tolist()
        running = list(dict.fromkeys(experts))
        if running == own:
            found.append(after.weights[t].tolist())
            continue
        ranked = sorted(
            (e for e in range(len(choice[t])) if choice[t][e] > -torch.inf), key=lambda e: (-choice[t][e], e)
        )
        over = {"original": own, "mass": running, "reference": ranked[:k2]}[weights]
        mass = rule.scaling * (1.0 if rule.renormalize else fsum(scores[t][e] for e in own))
        total, row = fsum(scores[t][e] for e in over), []
        for w, e in enumerate(experts):
            scale = 1.0 if rule.expert_scale is None else float(rule.expert_scale[e])
            row.append(0.0 if e in experts[:w] else mass * scores[t][e] / total * scale)
        found.append(row)
    return found


@pytest.mark.parametrize("compiled", [True, False], ids=["loops", "torch"])
@pytest.mark.parametrize("weights", OTHERS)
@examples
@given(case=cases(), policy=st.sampled_from(REPRESENTATIVES), k2=st.integers(2, 4))
def test_formula(weights: Weights, compiled: bool, case: Case, policy: Policy, k2: int) -> None:
    if not case.fits(policy):
        return
    after = case.run(policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", compiled and native.AVAILABLE)
        made = weigh(case.routing, after, case.rule, weights, k2 if weights == "reference" else None)
    assert made.experts is after.experts
    expected = torch.tensor(by_hand(case, after, weights, k2), dtype=torch.float64)
    assert torch.allclose(made.weights.double(), expected, rtol=2e-6, atol=1e-9)


@examples
@given(case=cases(), policy=st.sampled_from(REPRESENTATIVES))
def test_what_holds_between_them(case: Case, policy: Policy) -> None:
    """On every router: reference of K is original, of all is the plain score of a softmax; mass is renormalize where
    the policy renormalises."""
    if not case.fits(policy):
        return
    made = {name: case.run(replace_weights(policy, name)) for name in ("renormalize", *OTHERS)}
    assert same(made["reference"], made["original"])
    for routing in made.values():
        assert torch.equal(routing.experts, made["renormalize"].experts)
    if policy.name not in ("top_k", "lexi", "sere", "reassign", "oea") and case.rule.expert_scale is None:
        assert torch.allclose(made["mass"].weights, made["renormalize"].weights, rtol=1e-5, atol=1e-7)


def replace_weights(policy: Policy, weights: Weights, k2: int | None = None) -> Policy:
    return replace(policy, weights=weights, k2=k2)


@pytest.mark.parametrize("renormalize", [True, False])
def test_all_experts_of_a_softmax(renormalize: bool) -> None:
    """k2=E: the scores as they are, times what the router hands a token."""
    rule = RouterRule(renormalize=renormalize)
    scores = LOGITS.softmax(-1)
    weights, experts = scores.topk(2)
    routing = Routing(
        logits=LOGITS, experts=experts, weights=weights / (weights.sum(-1, keepdim=True) if renormalize else 1)
    )
    out = build_policy("top_k", k=1, weights="reference", k2=6)(routing, replace(STEP, shared={}), rule)
    mass = torch.ones(4) if renormalize else weights.sum(-1)
    assert torch.allclose(out.weights[:, 0], scores.max(-1).values * mass)
    assert not out.weights[:, 1:].any()


GOLDEN = {
    # token 1 runs (0, 3) for (0, 2), scores .4089 .0826 for .4089 .3700: own top-K .7789
    "original": [0.5250, 0.1060],
    "mass": [0.8320, 0.1680],
    # best three .4089 .3700 .0826
    "reference": [0.4747, 0.0958],
    "renormalize": [0.8320, 0.1680],
    "affine": [0.8320, 0.1680],
}


@pytest.mark.parametrize("weights", GOLDEN)
def test_golden(weights: Weights) -> None:
    policy = build_policy("lynx_v1_latency", keep_experts=4, weights=weights, k2=3 if weights == "reference" else None)
    out = policy(vanilla(), replace(STEP, shared={}), RULE)
    assert out.experts.tolist() == [[0, 1], [0, 3], [1, 3], [5, 0]]
    assert out.weights[1].tolist() == pytest.approx(GOLDEN[weights], abs=1e-4)
    rows = [0, 2, 3]
    assert torch.equal(out.weights[rows], vanilla().weights[rows]), "rows that stay, stay to the bit"


@pytest.mark.parametrize("weights", [*OTHERS, "affine"])
@examples
@given(case=cases())
def test_no_drop_is_vanilla_bit_for_bit_under_every_one(weights: Weights, case: Case) -> None:
    for policy in (build_policy("no_drop", weights=weights), build_policy("vanilla", weights=weights)):
        if case.fits(policy):
            assert same(case.run(policy), case.routing)


@examples
@given(case=cases())
def test_the_default_changes_nothing(case: Case) -> None:
    after = Routing(logits=case.routing.logits, experts=case.routing.experts.flip(-1), weights=case.routing.weights)
    assert weigh(case.routing, after, case.rule, "renormalize", None) is after


@pytest.mark.parametrize("name", ["lynx_v1_latency", "deny_rank", "reassign"])
def test_a_token_keeps_its_mass_where_each_expert_has_a_scale_and_nothing_is_renormalised(name: str) -> None:
    """M p_i / D, times the scale, M before any scale: to take it from the weights as they are would scale twice."""
    scale = torch.tensor([0.5, 2.0, 1.5, 0.25, 3.0, 1.0])
    rule = RouterRule(renormalize=False, scaling=2.0, expert_scale=scale)
    scores = LOGITS.softmax(-1)
    raw, experts = scores.topk(2)
    routing = Routing(logits=LOGITS, experts=experts, weights=2.0 * raw * scale[experts])
    policy = build_policy(name, **{"reassign": {"fraction": 1.0}, "deny_rank": {}}.get(name, {"keep_experts": 2}))
    out = policy(routing, replace(STEP, shared={}), rule)
    changed = (out.experts != experts).any(-1)
    assert changed.sum() >= 3
    p = scores.gather(-1, out.experts)
    wanted = 2.0 * raw.sum(-1, keepdim=True) * p / p.sum(-1, keepdim=True) * scale[out.experts]
    assert torch.allclose(out.weights[changed], wanted[changed])


def test_an_expert_in_two_slots_weighs_once() -> None:
    routing = vanilla()
    doubled = Routing(logits=LOGITS, experts=torch.tensor([[0, 0], [2, 2], [1, 3], [5, 5]]), weights=routing.weights)
    out = weigh(routing, doubled, RULE, "mass", None)
    once = torch.tensor([1.0, 0.0])
    assert torch.allclose(out.weights, torch.stack([once, once, routing.weights[2], once]))


def test_refusals() -> None:
    shape = ModelShape(num_experts=6, top_k=2)
    grouped = RouterRule(groups=3, top_groups=1)
    cases = [
        ("weights=half: must be one of renormalize, original, mass, reference, affine", {"weights": "half"}),
        ("k2=4: only weights=reference takes one, not weights=mass", {"weights": "mass", "k2": 4}),
        ("k2=many: must be of type int", {"weights": "reference", "k2": "many"}),
    ]
    for message, given_ in cases:
        with pytest.raises(ValueError, match=f"^top_k: {message}$"):
            build_policy("top_k", **given_)
    for k2 in (1, 7):
        with pytest.raises(ValueError, match=f"^top_k: k2={k2}: must lie in 2..6$"):
            build_policy("top_k", weights="reference", k2=k2).bind(shape)
    with pytest.raises(ValueError, match=r"^top_k: k2=3: must lie in 2..2$"):
        build_policy("top_k", weights="reference", k2=3).bind(replace(shape, rule=grouped))
    with pytest.raises(ValueError, match="^reassign: new_weight=slot: weights=mass says what a new expert weighs$"):
        build_policy("reassign", new_weight="slot", weights="mass")


def test_labels() -> None:
    assert build_policy("top_k").label == "top_k(k=1)"
    assert build_policy("top_k", weights="reference", k2=4).label == "top_k(weights=reference, k2=4, k=1)"
    by_layer = build_policy("top_k", weights="reference", k2=[2, 3, 4])
    assert [policy.k2 for policy in by_layer.policies] == [2, 3, 4]  # type: ignore[attr-defined]


def test_one_kernel_more_for_each_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not run leaves the weights to torch, and says so."""
    pytest.importorskip("triton")
    from lynx_exp.routing.backends.triton.kernels import fallback, weighing
    from tests.routing.kernel_cases import big_case

    def broken(*_: object) -> None:
        raise RuntimeError("ptxas failed")

    policy = build_policy("top_k", weights="original")
    case = big_case(8, 8, 2, 1, torch.float32, rule=RouterRule())
    expected = case.run(policy)
    monkeypatch.setattr(fallback, "_failed", {})
    monkeypatch.setattr(weighing, "weigh", broken)
    monkeypatch.setattr(kernels, "chosen", lambda _: True)
    assert torch.allclose(case.run(policy).weights, expected.weights)
    note = "top_k weighs in torch (8 experts, top-2): its kernel does not run here: RuntimeError: ptxas failed"
    assert note in kernels.fallback_notes(policy)


def test_every_policy_takes_weights() -> None:
    assert all(policy.weights in ("renormalize", *OTHERS) for policy in POLICIES)
