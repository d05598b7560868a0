"""Decoding: equal to transformers' own, independent of packing, dependent on lanes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.routing import Policy
from tests.engine.conftest import shape_of
from tests.routing.laws import REPRESENTATIVES, bound

NEW_TOKENS = 16


def reference(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of transformers' own generate, one prompt at a time, cut after EOS."""
    out = []
    for prompt in prompts:
        ids = engine.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        out.append(ids[0, len(prompt) :].tolist())
    return out


def tokens(
    engine: Engine, prompts: list[list[int]], batch_size: int, policy: Policy | None, phases: str, max_rows: int
):
    engine.max_rows = max_rows
    run = engine.generate(
        prompts, batch_size=batch_size, policy=policy, phases=phases, max_new_tokens=NEW_TOKENS
    )  # fmt: skip
    engine.max_rows = 64
    return run


@pytest.mark.parametrize("batch_size", [1, 16])
def test_vanilla_equals_transformers_generate(engine: Engine, prompts: list[list[int]], batch_size: int) -> None:
    run = engine.generate(prompts, batch_size=batch_size, max_new_tokens=NEW_TOKENS)
    assert run.token_ids == reference(engine, prompts)
    assert {"eos", "length"} >= set(run.finish_reasons)


@pytest.mark.parametrize("phases", ["decode", "both"])
@pytest.mark.parametrize("policy", REPRESENTATIVES, ids=lambda policy: policy.label)
def test_packed_lanes_equal_lanes_run_alone(engine: Engine, prompts: list, policy: Policy, phases: str) -> None:
    policy = bound(policy, shape_of(engine))
    packed = tokens(engine, prompts, 4, policy, phases, max_rows=64)
    alone = tokens(engine, prompts, 4, policy, phases, max_rows=1)
    assert packed.token_ids == alone.token_ids
    assert packed.active_experts == alone.active_experts


@pytest.mark.parametrize("name", ["lynx", "lynx_v1_latency", "lynx_v1_accuracy", "random_keep"])
def test_ignoring_lanes_would_change_tokens(engine: Engine, prompts: list[list[int]], name: str) -> None:
    """The test above can fail: with all 32 rows in one lane, a batch-aware policy gives other tokens."""
    lanes = tokens(engine, prompts, 4, build_policy(name), "decode", max_rows=64)
    one = tokens(engine, prompts, 32, build_policy(name), "decode", max_rows=64)
    assert sum(a != b for a, b in zip(lanes.token_ids, one.token_ids, strict=True)) > 8


def test_policies_change_tokens_and_shrink_the_active_set(engine: Engine, prompts: list[list[int]]) -> None:
    vanilla = engine.generate(prompts, batch_size=16, max_new_tokens=NEW_TOKENS)
    pruned = engine.generate(
        prompts, batch_size=16, policy=build_policy("lynx_v1_latency", keep_experts=3), max_new_tokens=NEW_TOKENS
    )
    assert vanilla.token_ids != pruned.token_ids
    assert max(row.active_experts for row in pruned.active_experts if row.live_rows >= 2) <= 3
    assert max(row.active_experts for row in vanilla.active_experts) > 5


def test_no_drop_equals_vanilla(engine: Engine, prompts: list[list[int]]) -> None:
    vanilla = engine.generate(prompts, batch_size=8, max_new_tokens=NEW_TOKENS)
    control = engine.generate(
        prompts, batch_size=8, policy=build_policy("no_drop"), phases="both", max_new_tokens=NEW_TOKENS
    )
    assert control.token_ids == vanilla.token_ids
    assert control.active_experts == vanilla.active_experts


def test_phases_none_is_vanilla_for_every_policy(engine: Engine, prompts: list[list[int]]) -> None:
    vanilla = engine.generate(prompts[:8], batch_size=4, max_new_tokens=4)
    for policy in REPRESENTATIVES:
        policy = bound(policy, shape_of(engine))
        run = engine.generate(prompts[:8], batch_size=4, policy=policy, phases="none", max_new_tokens=4)
        assert run.token_ids == vanilla.token_ids


def test_a_decode_policy_leaves_the_first_token_alone(engine: Engine, prompts: list[list[int]]) -> None:
    """The first token comes from the prefill; only a policy that acts there can change it."""
    policy = build_policy("random_keep", keep_experts=2)
    vanilla = engine.generate(prompts, batch_size=16, max_new_tokens=1)
    decode = engine.generate(prompts, batch_size=16, policy=policy, phases="decode", max_new_tokens=1)
    prefill = engine.generate(prompts, batch_size=16, policy=policy, phases="prefill", max_new_tokens=1)
    assert decode.token_ids == vanilla.token_ids
    assert prefill.token_ids != vanilla.token_ids


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    lengths=st.lists(st.integers(1, 9), min_size=30, max_size=30),
    order=st.randoms(use_true_random=False),
    max_rows=st.integers(1, 30),
)
def test_any_plan_gives_the_tokens_of_its_lanes_alone(
    engine: Engine, prompts: list[list[int]], sizes: list[int], lengths: list[int], order, max_rows: int
) -> None:
    """Ragged lanes, shuffled requests, own length limits, any physical batch: tokens depend on the lanes alone."""
    policy = build_policy("lynx_v1_latency", keep_experts=3)
    numbers = list(range(sum(sizes)))
    order.shuffle(numbers)
    lanes, start = [], 0
    for size in sizes:
        lanes.append(tuple(numbers[start : start + size]))
        start += size
    requests = [Request(prompt_ids=tuple(prompts[i]), max_new_tokens=lengths[i]) for i in range(len(numbers))]
    plan = BatchPlan(tuple(lanes))
    engine.max_rows = max_rows
    together = {result.lane: result for result in engine.run_lanes(requests, plan, policy)}
    engine.max_rows = 64
    for lane in range(len(lanes)):
        (alone,) = engine.run_lanes(requests, plan, policy, lanes=[lane])
        assert together[lane] == alone


def test_lanes_arrive_as_they_complete(engine: Engine, prompts: list[list[int]]) -> None:
    requests = [Request(prompt_ids=tuple(p), max_new_tokens=2 if i >= 4 else 12) for i, p in enumerate(prompts[:8])]
    plan = BatchPlan(((0, 1, 2, 3), (4, 5, 6, 7)))
    seen: list[int] = []
    results = engine.run_lanes(requests, plan, on_step=seen.append)
    assert next(results).lane == 1 and sum(seen) == 16
    assert next(results).lane == 0


def test_live_rows_shrink_and_are_recorded(engine: Engine, prompts: list[list[int]]) -> None:
    requests = [Request(prompt_ids=tuple(p), max_new_tokens=1 + i) for i, p in enumerate(prompts[:6])]
    (lane,) = engine.run_lanes(requests, BatchPlan((tuple(range(6)),)))
    lengths = [len(t) for t in lane.token_ids]
    assert lane.live_rows == [sum(n > t + 1 for n in lengths) for t in range(max(lengths) - 1)]
    assert len(lane.active_experts) == len(lane.live_rows)
    assert all(len(layers) == engine.num_layers for layers in lane.active_experts)


@pytest.mark.parametrize(
    "call,message",
    [
        (dict(batch_size=0), "batch_size=0"),
        (dict(batch_size=4, max_new_tokens=200), "positions; the model has 128"),
        (dict(batch_size=4, max_new_tokens=0), "max_new_tokens=0"),
        (dict(batch_size=4, policy=build_policy("lynx_v1_latency", keep_experts=9)), "keep_experts=9"),
    ],
)
def test_bad_calls_are_named(engine: Engine, prompts: list[list[int]], call: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.generate(prompts, **call)


def test_text_needs_a_tokenizer(engine: Engine) -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        engine.generate(["hello"], batch_size=1)


def test_the_model_is_free_between_two_lanes(engine: Engine, prompts: list[list[int]]) -> None:
    """A consumer that runs something else while lanes are still to come changes neither."""
    policy = build_policy("lynx_v1_latency", keep_experts=2)
    requests = [Request(prompt_ids=tuple(p), max_new_tokens=8) for p in prompts[:12]]
    plan = BatchPlan.in_order(12, 4)
    engine.max_rows = 4
    undisturbed = list(engine.run_lanes(requests, plan, policy))
    disturbed = []
    for lane in engine.run_lanes(requests, plan, policy):
        disturbed.append(lane)
        assert not torch.is_inference_mode_enabled()
        vanilla = engine.generate(prompts[:4], batch_size=2, max_new_tokens=4)
    engine.max_rows = 64
    assert disturbed == undisturbed
    assert vanilla.token_ids == engine.generate(prompts[:4], batch_size=2, max_new_tokens=4).token_ids
    assert not any(module._forward_hooks for module in engine.model.modules())
