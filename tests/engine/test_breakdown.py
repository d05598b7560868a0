"""Sections of a step, and prefills: what is timed and how it adds up; never how long it took."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch

from lynx_exp import Engine, build_policy
from lynx_exp.engine.decoding.decoder import PlainDecoder
from lynx_exp.engine.timing.breakdown import SECTIONS, Stopwatch
from lynx_exp.engine.timing.prefill_timing import time_prefill

FEW = build_policy("lynx_v1_latency", keep_experts=2)


def hooks(engine: Engine) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in engine.model.modules())


def test_inner_sections_take_their_time_out_of_outer_ones() -> None:
    ticks = iter(accumulate([0, 1, 2, 4, 8, 16, 32, 64]))
    watch = Stopwatch(torch.device("cpu"), clock=lambda: next(ticks))
    with watch.section("rest"), watch.section("router"), watch.section("policy"):  # read at 0, 1, 3, 7, 15, 31
        pass
    found = watch.read()
    assert found == {"policy": 4e3, "router": (15 - 1) * 1e3 - 4e3, "rest": 31e3 - 14e3}
    with watch.section("rest"):
        pass
    assert watch.read() == {"rest": 64e3}, "read anew"


@pytest.mark.parametrize("plain", [False, True])
def test_every_section_is_seen(
    engine: Engine, prompts: list[list[int]], plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setattr(engine, "_decoder", PlainDecoder)
    before = hooks(engine)
    found = engine.breakdown(
        prompts, batch_size=4, policies={"few": FEW, "control": build_policy("no_drop")}, new_tokens=3, repeats=2
    )
    assert hooks(engine) == before
    assert list(found.ms) == ["vanilla", "few", "control"]
    for name, sections in found.ms.items():
        assert tuple(sections) == SECTIONS
        assert all(len(repeats) == 2 for repeats in sections.values())
        for section, repeats in sections.items():
            policy_free = name == "vanilla" and section == "policy"
            assert all((ms == 0) if policy_free else (ms > 0) for ms in repeats), (name, section)


def test_prefills_are_timed_in_turns(engine: Engine, prompts: list[list[int]]) -> None:
    """On a clock by which vanilla's take 4 ms and the policy's 2; the first to go alternates."""
    turns = [4.0, 2.0, 2.0, 4.0] * 20
    clock = accumulate(ms / 1e3 for turn in turns for ms in (0.0, turn))
    with torch.inference_mode():
        timing = time_prefill(
            engine.model,
            engine.routers,
            [tuple(p) for p in prompts[:3]],
            {"few": engine.bind(FEW)},
            "both",
            None,
            repeats=3,
            max_repeats=5,
            precision=0.02,
            clock=lambda: next(clock),
        )
    assert timing.ms["vanilla"] == [[pytest.approx(4.0)]] * 3 and timing.ms["few"] == [[pytest.approx(2.0)]] * 3
    assert timing.speedup("few") == pytest.approx((2.0, 2.0, 2.0))
    assert timing.stable and timing.precision_reached
    assert timing.prompt_tokens == sum(map(len, prompts[:3]))
    assert timing.active_experts["few"] == 2.0 < timing.active_experts["vanilla"]


def test_a_policy_in_decode_has_vanillas_prefill(engine: Engine, prompts: list[list[int]]) -> None:
    before = hooks(engine)
    given = {"batch_size": 4, "policies": {"few": FEW}, "repeats": 1}
    assert list(engine.measure_prefill(prompts, phases="decode", **given).ms) == ["vanilla"]
    assert list(engine.measure_prefill(prompts, phases="both", **given).ms) == ["vanilla", "few"]
    assert hooks(engine) == before


def test_models_without_slots_are_refused_by_name(
    engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "has_slots", False)
    with pytest.raises(ValueError, match="MixtralForCausalLM: a breakdown needs full attention"):
        engine.breakdown(prompts, batch_size=2, policies={})
