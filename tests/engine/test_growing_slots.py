"""Slots that grow with the responses: less memory, the same bits."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.engine import BatchPlan, Engine, Request
from lynx_exp.engine.decoding import stream
from lynx_exp.engine.decoding.decoder import PlainDecoder
from lynx_exp.engine.kv_cache.slots import WIDTH, Prefilled, Slots, round_up
from lynx_exp.routing import build_policy


def like(layers: int = 2) -> Prefilled:
    made = [torch.zeros(1, 2, 4, 3) for _ in range(layers)]
    return Prefilled(keys=made, values=made, prefix=None, lengths=[4], logits=torch.zeros(1, 5))


@given(st.integers(1, 400), st.lists(st.integers(1, 600), max_size=8))
def test_what_is_held_stays_and_never_exceeds_the_capacity(first, asked):
    capacity = 600
    slots = Slots(like(), 3, capacity, held=first)
    expected = [torch.randn(3, 2, min(first, capacity), 3) for _ in range(2)]
    slots.keys = [each.clone() for each in expected]
    for positions in asked:
        before = slots.held
        slots.hold(positions)
        assert max(before, positions) <= slots.held <= capacity
        assert slots.held == before if positions <= before else slots.held >= min(capacity, before * 1.5 // 1)
    for key, value, was in zip(slots.keys, slots.values, expected, strict=True):
        assert key.shape == value.shape == (3, 2, slots.held, 3)
        assert torch.equal(key[:, :, : was.shape[2]], was) and not key[:, :, was.shape[2] :].any()


@pytest.mark.parametrize(("name", "plain"), [("vanilla", False), ("lynx", False), ("lynx", True)])
def test_tokens_and_experts_are_those_of_slots_held_at_once(name, plain, engine: Engine, prompts, monkeypatch):
    if plain:  # the model's own forward pass, over a cache of transformers
        monkeypatch.setattr(engine, "_make_decoder", lambda: PlainDecoder)
    policy = None if name == "vanilla" else build_policy("lynx", alpha=1.0, beta=1)
    rng = Random(1)
    asked = [Request(prompt_ids=tuple(p), max_new_tokens=rng.randint(2, 100), ignore_eos=True) for p in prompts[:12]]
    plan = BatchPlan.continuous(12, 3, waves=2)
    held: list[int] = []
    hold = Slots.hold

    def noted(self: Slots, positions: int) -> None:
        hold(self, positions)
        held.append(self.held)
        assert positions <= self.held

    monkeypatch.setattr(Slots, "hold", noted)
    results = {}
    for ahead in (1, 1024):
        held.clear()
        monkeypatch.setattr(stream, "AHEAD", ahead)
        results[ahead] = sorted(engine.run_lanes(asked, plan, policy), key=lambda lane: lane.lane)
        longest = round_up(max(len(request.prompt_ids) + request.max_new_tokens for request in asked))
        if ahead == 1:
            assert held[0] < longest and len(set(held)) > 1 and max(held) % WIDTH == 0
        else:
            assert set(held) == {longest}
    assert results[1] == results[1024]
