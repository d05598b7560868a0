"""What is particular to single policies: budgets, randomness, bad parameters."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, Literal

import pytest
import torch

from lynx_exp.config import label_policy, policy_declaration
from lynx_exp.extensions import extension_folders
from lynx_exp.routing import Calibrated, ModelShape, RouterRule, StepContext, build_policy, layer_range, policy_names
from tests.routing.laws import bound, calibration, route

RULE = RouterRule(score="softmax", renormalize=True)


def one_lane(num_rows: int, layer: int = 0, key: int = 0) -> StepContext:
    ones = torch.ones(num_rows, dtype=torch.bool)
    lane = torch.zeros(num_rows, dtype=torch.long)
    return StepContext(
        layer=layer,
        decode=ones,
        lane=lane,
        live=ones,
        num_lanes=1,
        key=torch.tensor([key]),
        row=torch.arange(num_rows) << 32,
    )


@pytest.mark.parametrize("name", ["lynx_v1_latency", "random_keep"])
@pytest.mark.parametrize("budget", [2, 5, 8])
def test_a_budget_is_kept_exactly(name: str, budget: int) -> None:
    routing = route(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), RULE)
    policy: Any = build_policy(name, keep_experts=budget)
    kept = policy.keep(routing, one_lane(12), RULE)
    assert kept.sum() == budget


def test_random_keep_repeats_from_its_seed_and_differs_by_layer_step_and_seed() -> None:
    routing = route(torch.zeros(4, 32), RULE)

    def kept(seed: int, layer: int, key: int) -> tuple[int, ...]:
        policy: Any = build_policy("random_keep", keep_experts=8, seed=seed)
        mask = policy.keep(routing, one_lane(4, layer, key), RULE)
        return tuple(torch.nonzero(mask[0])[:, 0].tolist())

    draws = {(s, layer, key): kept(s, layer, key) for s in range(3) for layer in range(3) for key in (0, 1, 1 << 32)}
    assert len(set(draws.values())) == len(draws)
    assert kept(1, 2, 1) == draws[1, 2, 1]


def test_random_keep_is_uniform() -> None:
    """Each of 16 experts is kept in a quarter of 4,000 draws: within five standard errors."""
    routing = route(torch.zeros(2, 16), RULE)
    policy: Any = build_policy("random_keep", keep_experts=4)
    counts = torch.zeros(16)
    for key in range(4000):
        counts += policy.keep(routing, one_lane(2, key % 4, key << 32 | key), RULE)[0]
    assert (counts - 1000).abs().max() < 5 * math.sqrt(4000 * 0.25 * 0.75)


def test_lynx_at_batch_one_is_vanilla() -> None:
    routing = route(torch.randn(1, 16, generator=torch.Generator().manual_seed(1)), RULE, top_k=4)
    out = build_policy("lynx")(routing, one_lane(1), RULE)
    assert torch.equal(out.experts, routing.experts)


BAD = [
    ("lnyx", {}, "did you mean lynx"),
    ("lynx", {"gamma": 1}, "known: min_batch, weights, k2, protect, per_layer, alpha, beta, bins"),
    ("vanilla", {"k": 1}, "known: min_batch"),
    ("lynx", {"alpha": 0}, "must be above 0"),
    ("lynx", {"alpha": float("nan")}, "must be above 0"),
    ("lynx", {"alpha": "3"}, "must be a number"),
    ("lynx", {"beta": 1.5}, "must be of type int"),
    ("lynx", {"beta": 0}, "must be at least 1"),
    ("lynx", {"min_batch": 0}, "must be at least 1"),
    ("lynx_v1_latency", {"keep_experts": True}, "must be of type int"),
    ("lynx_v1_accuracy", {"confidence": 1.5}, "must lie in 0.0..1.0"),
    ("deny_rank", {"mode": "swap"}, "must be one of replace, drop"),
    ("deny_rank", {"rank": -1}, "must be at least 0"),
    ("top_k", {"k": 0}, "must be at least 1"),
    ("oea", {"k0": 0}, "must be at least 1"),
    ("oea", {"p": 0.0}, "must be above 0"),
    ("oea", {"k_max": 0}, "must be at least 1"),
    ("xshare", {"score": "logits"}, "must be one of prob, logit"),
    ("xshare", {"warm_up": -1}, "must be at least 0"),
    ("xshare", {"max_batch": 1}, "must be at least 2"),
    ("coverage", {"tolerance": None}, "give a tolerance, a budget, or both"),
    ("coverage", {"tolerance": 0}, "must be above 0"),
    ("coverage", {"rounds": 0}, "rounds=0: must lie in 1..64"),
    ("coverage", {"rounds": 65}, "rounds=65: must lie in 1..64"),
    ("sere", {"threshold": 1.1}, "must lie in 0.0..1.0"),
    ("sere", {"calibration": 3}, "must be of type str"),
    ("naee", {"strength": -1}, "must be at least 0"),
    ("lexi", {"mean_k": 0.5}, "must be at least 1"),
    ("top_p", {"p": 1.5}, "must lie in 0.0..1.0"),
    ("min_p", {"ratio": 2}, "must lie in 0.0..1.0"),
    ("keep_ranks", {"ranks": 0}, "must be at least 1"),
    ("reassign", {"gate": "both"}, "must be one of none, high, low"),
    ("reassign", {"fraction": 1.2}, "must lie in 0.0..1.0"),
]


@pytest.mark.parametrize("name,parameters,message", BAD)
def test_bad_parameters_are_named(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        build_policy(name, **parameters)
    text = str(error.value)
    assert message in text and "\n" not in text
    assert all(field in text for field in parameters)


UNFIT = [
    ("lynx_v1_latency", {"keep_experts": 9}, (8, 2), "keep_experts=9: must lie in 2..8"),
    ("random_keep", {"keep_experts": 1}, (8, 2), "keep_experts=1: must lie in 2..8"),
    ("lynx_v1_accuracy", {"min_experts": 9}, (8, 2), "min_experts=9: must lie in 1..8"),
    ("lynx_v1_accuracy", {}, (8, 1), "it needs 2"),
    ("top_k", {"k": 3}, (8, 2), "k=3: must lie in 1..2"),
    ("deny_rank", {"rank": 2}, (8, 2), "rank=2: must lie in 0..1"),
    ("deny_rank", {"rank": 0}, (2, 2), "all 2 experts are already used"),
    ("deny_rank", {"rank": 0, "mode": "drop"}, (8, 1), "nothing would be left"),
    ("oea", {"k0": 3}, (8, 2), "k0=3: must lie in 1..2"),
    ("oea", {"k_max": 9}, (8, 2), "k_max=9: must lie in 1..8"),
    ("xshare", {"budget": 1}, (8, 2), "budget=1: must lie in 2..8"),
    ("xshare", {"warm_up": 3}, (8, 2), "warm_up=3: must lie in 0..2"),
    ("coverage", {"budget": 9}, (8, 2), "budget=9: must lie in 2..8"),
    ("coverage", {"guarantee": 3}, (8, 2), "guarantee=3: must lie in 0..2"),
    ("sere", {"primary": 3}, (8, 2), "primary=3: must lie in 1..2"),
    ("naee", {}, (8, 1), "top-k of at least 2"),
    ("lexi", {"mean_k": 2.5}, (8, 2), "mean_k=2.5: must lie in 1.0..2"),
    ("static_mask", {"keep_experts": 1}, (8, 2), "keep_experts=1: must lie in 2..8"),
    ("keep_ranks", {"ranks": 3}, (8, 2), "ranks=3: must lie in 1..2"),
    ("reassign", {"first_rank": 2}, (8, 2), "first_rank=2: must lie in 0..1"),
    ("reassign", {}, (3, 2), "needs 2 experts beside a token's own"),
]


@pytest.mark.parametrize("name,parameters,shape,message", UNFIT)
def test_parameters_that_a_model_cannot_run_are_named(name: str, parameters: dict, shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_policy(name, **parameters).check(ModelShape(num_experts=shape[0], top_k=shape[1]))


def test_every_policy_builds_from_its_defaults_and_has_a_label() -> None:
    assert len(policy_names()) >= 8
    for name in policy_names():
        assert build_policy(name).label.startswith(name)
        assert build_policy(name).name == name


def test_what_a_policy_of_ones_own_declares_is_read_too(tmp_path, monkeypatch):
    (tmp_path / "policies").mkdir()
    head = "from lynx_exp.routing import Knob, LanePolicy\n\nclass Mine(LanePolicy):\n    size: int = 8\n    "
    body = 'knob = Knob(parameter="size", low="K", high="E")\n    hidden = ("trace",)\n    purpose = "probe"\n'
    (tmp_path / "policies/mine.py").write_text(head + body)
    (tmp_path / "policies/broken.py").write_text("class (")
    monkeypatch.setenv("LYNX_EXP_PATH", str(tmp_path))
    extension_folders.cache_clear()
    try:
        mine, broken = policy_declaration("mine"), policy_declaration("broken")
    finally:
        monkeypatch.undo()
        extension_folders.cache_clear()
    assert (mine.kind, mine.purpose, mine.knob, mine.color) == ("batch-aware", "probe", "size", None)
    assert mine.hidden == {"min_batch", "weights", "seed", "trace"}
    assert broken == policy_declaration("nobody knows it") and broken.purpose == "method"


@pytest.mark.parametrize("name", policy_names())
def test_what_a_class_declares_is_read_from_its_source(name):
    policy, read = build_policy(name), policy_declaration(name)
    told = (policy.kind, policy.purpose, policy.color, policy.marker, policy.yields_marker)
    assert told == (read.kind, read.purpose, read.color, read.marker, read.yields_marker)
    assert (policy.knob and policy.knob.parameter) == read.knob
    assert (policy.kind == "batch-aware") == (policy.min_batch > 1)
    parameters = {field.name: getattr(policy, field.name) for field in fields(policy) if field.init}
    assert {"min_batch", *type(policy).hidden} <= {*read.hidden} and {*type(policy).hidden} - {"seed"} <= {*parameters}
    assert policy.label == label_policy(name, parameters)


def test_oea_and_lynx_serve_routers_with_groups_and_budgets_are_refused() -> None:
    grouped = ModelShape(num_experts=8, top_k=2, rule=RouterRule(groups=4, top_groups=2))
    for name in ("lynx", "oea", "coverage", "no_drop"):
        build_policy(name).check(grouped)
    for name in ("xshare", "lynx_v1_latency", "lynx_v1_accuracy", "random_keep", "static_mask"):
        with pytest.raises(ValueError, match=f"{name}: .* 2 of 4 groups"):
            build_policy(name).check(grouped)
    build_policy("xshare").check(ModelShape(num_experts=8, top_k=2, rule=RouterRule(groups=4, top_groups=4)))


def test_a_list_gives_each_layer_its_own_value() -> None:
    policy = build_policy("top_k", k=[2, 1], min_batch=1)
    routing = route(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), RULE)
    assert policy(routing, one_lane(3, layer=0), RULE).weights[:, 1].all()
    assert not policy(routing, one_lane(3, layer=1), RULE).weights[:, 1].any()
    policy.bind(ModelShape(num_experts=8, top_k=2, num_layers=2))
    with pytest.raises(ValueError, match="parameters for 2 layers; this model has 3"):
        policy.bind(ModelShape(num_experts=8, top_k=2, num_layers=3))
    with pytest.raises(ValueError, match="k, min_batch: lists of one value a layer must be equally long"):
        build_policy("top_k", k=[2, 1], min_batch=[1])
    with pytest.raises(ValueError, match="k=0: must be at least 1"):
        build_policy("top_k", k=[2, 0])


def test_min_batch_leaves_small_lanes_alone_for_every_policy() -> None:
    routing = route(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), RULE)
    for name in policy_names():
        policy = build_policy(name, min_batch=4)
        if isinstance(policy, Calibrated):
            continue
        out = policy(routing, one_lane(3), RULE)
        assert torch.equal(out.experts, routing.experts)
        assert torch.equal(out.weights, routing.weights)


@pytest.mark.parametrize(
    "text,chosen",
    [("1:", {1, 2, 3}), (":2", {0, 1}), (":-1", {0, 1, 2}), ("0,2:", {0, 2, 3}), ("-1", {3}), ("::", None), ("4", None)]
    + [("a", None), ("", None), ("3:2", None), ("1:3,0", {0, 1, 2}), ("-5", None)],
)
def test_layer_ranges(text: str, chosen: set[int] | None) -> None:
    if chosen is not None:
        assert layer_range(text, 4) == chosen
        return
    with pytest.raises(ValueError, match=f"layers={text}: "):
        layer_range(text, 4)


def reassigned(**parameters) -> tuple[torch.Tensor, torch.Tensor]:
    """(which slots changed, confidence of each token) on 2,000 tokens of 16 experts."""
    routing = route(torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)) * 2, RULE)
    out = build_policy("reassign", **parameters)(routing, one_lane(2000), RULE)
    assert not (out.experts[:, :, None] == routing.experts[:, None, :]).any(-1)[out.experts != routing.experts].any()
    return out.experts != routing.experts, routing.scores(RULE).var(-1, correction=0)


def test_reassign_replaces_the_fraction_asked_for() -> None:
    for fraction in (0.0, 0.3, 1.0):
        changed, _ = reassigned(fraction=fraction)
        assert abs(changed.double().mean() - fraction) < 5 * math.sqrt(0.25 / 4000)
    changed, _ = reassigned(fraction=1.0, first_rank=1)
    assert not changed[:, 0].any() and changed[:, 1].all()


def test_reassign_gates_by_confidence() -> None:
    for gate in ("high", "low"):
        changed, confidence = reassigned(fraction=1.0, gate=gate, threshold=0.02)
        high = confidence > 0.02
        assert high.any() and not high.all()
        assert torch.equal(changed.all(-1), high if gate == "high" else ~high)


def test_reassign_gives_a_new_expert_its_own_weight_or_the_slots() -> None:
    routing = route(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), RULE)
    own = build_policy("reassign", fraction=1.0)(routing, one_lane(5), RULE)
    slot = build_policy("reassign", fraction=1.0, new_weight="slot")(routing, one_lane(5), RULE)
    assert torch.equal(own.experts, slot.experts) and torch.equal(slot.weights, routing.weights)
    score = routing.scores(RULE).gather(-1, own.experts)
    assert torch.allclose(own.weights, score / score.sum(-1, keepdim=True))


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", ["min_p", "naee", "top_p", "oea", "elbow"])
def test_weights_and_probabilities_hold_no_bias(name: str, score: Literal["softmax", "sigmoid"]) -> None:
    """By the router's score, one row at a time; by score + bias - mean hundreds of 1,800 rows would differ."""
    rows, size, top_k = 1800, 16, 4
    generator = torch.Generator().manual_seed(0)
    rule = RouterRule(score=score, bias=torch.randn(size, generator=generator) * 0.1)
    before = route(torch.randn(rows, size, generator=generator), rule, top_k)
    policy = build_policy(name, **{"min_p": {"ratio": 0.6}, "oea": {"k0": 3, "p": 0.3, "k_max": 3}}.get(name, {}))
    shape = ModelShape(num_experts=size, top_k=top_k, num_layers=4, rule=rule)
    alone = replace(one_lane(rows), lane=torch.arange(rows), num_lanes=rows, key=torch.arange(rows))
    made = bound(replace(policy, min_batch=1), shape)(before, alone, rule)
    scores, ratio = rule.scores(before.logits).double().tolist(), calibration(size, top_k).ratio[0].tolist()
    for t, own in enumerate(before.experts.tolist()):
        row = [scores[t][e] for e in own]
        shares = [value / sum(scores[t]) for value in row]
        if name in ("min_p", "naee"):
            limits = [0.6] * top_k if name == "min_p" else ratio
            kept = [
                e for e, value, limit in zip(own, row, limits, strict=True) if e == own[0] or value >= limit * row[0]
            ]
        elif name == "elbow":
            curve = sorted(scores[t], reverse=True)
            below = [curve[0] + (curve[-1] - curve[0]) / (size - 1) * rank - curve[rank] for rank in range(size)]
            kept = own[: max(1, below.index(max(below)))]
        else:
            needed = next((n for n in range(top_k) if sum(shares[: n + 1]) >= policy_p(name)), top_k - 1) + 1
            kept = own[: min(needed, 3 if name == "oea" else top_k)]
        assert list(dict.fromkeys(made.experts[t].tolist())) == kept


def policy_p(name: str) -> float:
    return 0.3 if name == "oea" else 0.4
