"""What is particular to single policies: budgets, randomness, lynx against a loop-written reference."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from lynx_exp.routing import RouterRule, StepContext, build_policy, policy_names
from tests.routing.laws import route

RULE = RouterRule(score="softmax", renormalize=True)


def one_lane(num_rows: int, layer: int = 0, key: int = 0) -> StepContext:
    ones = torch.ones(num_rows, dtype=torch.bool)
    lane = torch.zeros(num_rows, dtype=torch.long)
    return StepContext(layer=layer, decode=ones, lane=lane, live=ones, num_lanes=1, key=torch.tensor([key]))


def lynx_by_loops(logits: list[list[float]], alpha: float, beta: int, k: int) -> set[int]:
    """AffinityBinning's kept set, one token and expert at a time; ties by logit, then by index."""
    batch, experts = len(logits), len(logits[0])
    bins = [[max(-beta, math.ceil(alpha * (x - max(row)))) for x in row] for row in logits]
    affinity = [[float(batch) ** b for b in row] for row in bins]
    column = [sum(affinity[t][e] for t in range(batch)) for e in range(experts)]
    kept: set[int] = set()
    for t in range(batch):
        z = [bins[t][e] + (column[e] - affinity[t][e]) / batch for e in range(experts)]
        order = sorted(range(experts), key=lambda e: (-z[e], -logits[t][e], e))
        kept.update(order[:k])
    return kept


@pytest.mark.parametrize("alpha,beta", [(3.0, 2), (1.0, 1), (0.75, 1), (2.0, 4)])
def test_lynx_equals_a_loop_written_reference(alpha: float, beta: int) -> None:
    rng = Random(f"{alpha}-{beta}")
    shrunk = 0
    for _ in range(100):
        batch, experts, k = rng.choice([2, 4, 8, 16]), rng.choice([8, 16, 32]), rng.choice([1, 2, 4])
        # Eighths are exact in binary, so no rounding decides which bin a gap falls into; they also make ties.
        logits = [[rng.randint(-24, 24) / 8 for _ in range(experts)] for _ in range(batch)]
        expected = lynx_by_loops(logits, alpha, beta, k)
        routing = route(torch.tensor(logits), RULE, top_k=k)
        kept = build_policy("lynx", alpha=alpha, beta=beta).keep(routing, one_lane(batch), RULE)
        assert set(torch.nonzero(kept[0])[:, 0].tolist()) == expected
        shrunk += len(expected) < len(set(routing.experts.flatten().tolist()))
    assert shrunk > 50, "the reference cases must exercise pruning"


@pytest.mark.parametrize("name", ["lynx_v1_latency", "random_keep"])
@pytest.mark.parametrize("budget", [2, 5, 8])
def test_a_budget_is_kept_exactly(name: str, budget: int) -> None:
    routing = route(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), RULE)
    kept = build_policy(name, keep_experts=budget).keep(routing, one_lane(12), RULE)
    assert kept.sum() == budget


def test_random_keep_repeats_from_its_seed_and_differs_by_layer_step_and_seed() -> None:
    routing = route(torch.zeros(4, 32), RULE)

    def kept(seed: int, layer: int, key: int) -> tuple[int, ...]:
        mask = build_policy("random_keep", keep_experts=8, seed=seed).keep(routing, one_lane(4, layer, key), RULE)
        return tuple(torch.nonzero(mask[0])[:, 0].tolist())

    draws = {(s, layer, key): kept(s, layer, key) for s in range(3) for layer in range(3) for key in (0, 1, 1 << 32)}
    assert len(set(draws.values())) == len(draws)
    assert kept(1, 2, 1) == draws[1, 2, 1]


def test_random_keep_is_uniform() -> None:
    """Each of 16 experts is kept in a quarter of 4,000 draws: within five standard errors."""
    routing = route(torch.zeros(2, 16), RULE)
    policy = build_policy("random_keep", keep_experts=4)
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
    ("lynx", {"gamma": 1}, "known: min_batch, alpha, beta"),
    ("vanilla", {"k": 1}, "it has none"),
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
    ("lynx_v1_accuracy", {}, (8, 1), "top-k of at least 2"),
    ("top_k", {"k": 3}, (8, 2), "k=3: must lie in 1..2"),
    ("deny_rank", {"rank": 2}, (8, 2), "rank=2: must lie in 0..1"),
    ("deny_rank", {"rank": 0}, (2, 2), "all 2 experts are already used"),
    ("deny_rank", {"rank": 0, "mode": "drop"}, (8, 1), "nothing would be left"),
]


@pytest.mark.parametrize("name,parameters,shape,message", UNFIT)
def test_parameters_that_a_model_cannot_run_are_named(name: str, parameters: dict, shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_policy(name, **parameters).check(*shape)


def test_every_policy_builds_from_its_defaults_and_has_a_label() -> None:
    assert len(policy_names()) >= 8
    for name in policy_names():
        assert build_policy(name).label.startswith(name)
        assert build_policy(name).name == name
