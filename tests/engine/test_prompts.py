"""Prompts prefilled once for everybody are the prompts prefilled one at a time; who asks first changes no bit."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lynx_exp.engine.decoding.prompts as prompts_module
from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.prompts import LEAST_PREFIX, Prompt, PromptStore, prefill
from lynx_exp.engine.kv_cache.slots import Prefilled
from tests.engine.conftest import VOCAB

EVERYTHING, NOTHING = 2**40, 1


def prompts_of(lengths: Sequence[int], prefix: int, seed: int = 0) -> list[Prompt]:
    """Prompts that share their first `prefix` tokens, with so many of their own."""
    rng = Random(seed)

    def tokens(count: int) -> Prompt:
        return tuple(rng.randrange(3, VOCAB) for _ in range(count))

    shared = tokens(prefix)
    return [shared + (3 + at,) + tokens(length - 1) for at, length in enumerate(lengths)]


def whole(prefilled: Prefilled, row: int) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """(keys and values `[H, N, D]` a layer, logits) of one prompt."""
    length = prefilled.lengths[row] - prefilled.prefix_length
    both = []
    for at, own in enumerate((prefilled.keys, prefilled.values)):
        layers = [layer[row, :, :length] for layer in own]
        if prefilled.prefix is not None:
            layers = [torch.cat([p[0], own], 1) for p, own in zip(prefilled.prefix[at], layers, strict=True)]
        both.append(layers)
    return both[0], both[1], prefilled.logits[row]


def same_bits(a: PromptStore, b: PromptStore, prompt: Prompt) -> bool:
    ours, theirs = whole(*a.get(prompt)), whole(*b.get(prompt))
    return all(map(torch.equal, [*ours[0], *ours[1], ours[2]], [*theirs[0], *theirs[1], theirs[2]]))


@pytest.mark.parametrize("prefix", [0, LEAST_PREFIX - 1, LEAST_PREFIX, 50])
@pytest.mark.parametrize("most_bytes", [EVERYTHING, NOTHING])
@torch.inference_mode()
def test_shared_prefill_equals_own_prefill(engine: Engine, prefix: int, most_bytes: int) -> None:
    prompts = prompts_of([1, 9, 30, 2, 17, 1, 44], prefix)
    store = PromptStore(engine.model, prompts, most_bytes)
    for prompt in [*prompts, *prompts[::-2]]:
        made, row = store.get(prompt)
        assert made.prefix_length == (prefix if prefix >= LEAST_PREFIX else 0)
        alone = prefill(engine.model, [prompt])
        assert made.lengths[row] == len(prompt)
        assert made.first_tokens[row] == alone.first_tokens[0]
        ours, theirs = whole(made, row), whole(alone, 0)
        for mine, other in zip([*ours[0], *ours[1], ours[2]], [*theirs[0], *theirs[1], theirs[2]], strict=True):
            assert mine.shape == other.shape
            assert torch.allclose(mine, other, rtol=0, atol=1e-5)


def test_a_prompt_that_is_the_others_prefix_keeps_a_token_of_its_own(engine: Engine) -> None:
    shared = tuple(range(3, 60))
    prompts = [shared, (*shared, 7), (*shared, 8, 9)]
    store = PromptStore(engine.model, prompts, EVERYTHING)
    for prompt in prompts:
        made, row = store.get(prompt)
        assert made.prefix_length == len(shared) - 1
        with torch.inference_mode():
            assert torch.allclose(made.logits[row], prefill(engine.model, [prompt]).logits[0], rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=9),
    prefix=st.sampled_from([0, 40]),
    rows=st.integers(1, 4),
    tokens=st.integers(20, 200),
    most_bytes=st.sampled_from([EVERYTHING, 200_000, NOTHING]),
    order=st.randoms(use_true_random=False),
)
def test_who_asks_first_changes_no_bit(
    engine: Engine, lengths: list[int], prefix: int, rows: int, tokens: int, most_bytes: int, order: Random
) -> None:
    """Many small chunks, some dropped and made again, asked for in any order and more than once."""
    prompts = prompts_of(lengths, prefix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompts_module, "CHUNK_ROWS", rows)
        patch.setattr(prompts_module, "CHUNK_TOKENS", tokens)
        first = PromptStore(engine.model, prompts, EVERYTHING)
        again = PromptStore(engine.model, [*prompts, *prompts[:2]], most_bytes)  # repeated ones count once
    asked = [*prompts, *prompts]
    order.shuffle(asked)
    assert all([same_bits(first, again, prompt) for prompt in asked])
    for chunk in first._chunks:
        assert len(chunk) <= rows
        assert len(chunk) == 1 or len(chunk) * max(map(len, chunk)) <= tokens


def test_a_small_store_forgets_and_a_large_one_does_not(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "CHUNK_ROWS", 2)
    prompts = prompts_of([5] * 6, 0)
    passes: list[int] = []
    run = prompts_module.run_prompts

    def counted(*given):
        passes.append(len(given[1]))
        return run(*given)

    monkeypatch.setattr(prompts_module, "run_prompts", counted)
    for most_bytes, expected in ((EVERYTHING, 3), (NOTHING, 6)):
        passes.clear()
        store = PromptStore(engine.model, prompts, most_bytes)
        for prompt in [*prompts, *prompts]:
            store.get(prompt)
        assert passes == [2] * expected
        assert len(store._made) == (3 if most_bytes == EVERYTHING else 1)


@pytest.mark.parametrize("prefix", [0, 40])
def test_nothing_keeps_a_graph(engine: Engine, prefix: int) -> None:
    """Prompts go through the model without autograd, whoever asks."""
    prompts = prompts_of([5, 9], prefix)
    made, _ = PromptStore(engine.model, prompts, EVERYTHING).get(prompts[0])
    shared = [*made.prefix[0], *made.prefix[1]] if made.prefix else []
    assert not any(t.requires_grad for t in (*made.keys, *made.values, *shared, made.logits))


@pytest.mark.parametrize("prefix", [0, 40])
def test_a_store_that_forgets_all_the_time_changes_no_result(
    engine: Engine, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded and scored, for a policy that acts in decode, in refilled slots."""
    monkeypatch.setattr(prompts_module, "CHUNK_ROWS", 2)
    requests = [
        Request(prompt_ids=prompt, max_new_tokens=2 + at % 4, continuation_ids=(5, 6, 7)[: 1 + at % 3])
        for at, prompt in enumerate(prompts_of([3, 8, 5, 20, 2, 60, 4, 9], prefix))
    ]
    policy, plan = build_policy("lynx_v1_latency", keep_experts=3), BatchPlan.continuous(8, 2, waves=2)
    found = []
    for gib in (1.0, 3e-4):
        engine._stores.clear()
        engine.memory_gib = gib
        try:
            found.append(
                (list(engine.run_lanes(requests, plan, policy)), list(engine.score_lanes(requests, plan, policy)))
            )
            (store,) = engine._stores.values()
        finally:
            engine.memory_gib = None
            engine._stores.clear()
    assert len(store._made) < len(store._chunks)
    by_lane = [[sorted(lanes, key=lambda lane: lane.lane) for lanes in both] for both in found]
    assert by_lane[0] == by_lane[1]


def test_decoding_from_shared_prompts_equals_prompts_prefilled_one_at_a_time(engine: Engine) -> None:
    prompts = prompts_of([3, 8, 5, 20, 2], 40)
    together = engine.generate(prompts, batch_size=5, max_new_tokens=8)
    alone = [engine.generate([prompt], batch_size=1, max_new_tokens=8).token_ids[0] for prompt in prompts]
    assert together.token_ids == alone
