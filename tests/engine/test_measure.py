"""Timing: what is timed and how it is summed up; never how long it took."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, chain
from typing import Any

import pytest
import torch

from lynx_exp import Engine, build_policy
from lynx_exp.engine import Timing
from lynx_exp.engine.timing.measure import measure
from lynx_exp.engine.timing.repeats import MAX_WARMUP


def test_vanilla_and_every_policy_are_timed_step_by_step(engine: Engine, prompts: list[list[int]]) -> None:
    policies = {"quarter": build_policy("lynx_v1_latency", keep_experts=2), "control": build_policy("no_drop")}
    produced: list[int] = []
    timing = engine.measure(prompts, batch_size=8, policies=policies, new_tokens=6, repeats=3, on_step=produced.append)
    assert timing.names == ["vanilla", "quarter", "control"]
    for name in timing.names:
        assert [len(steps) for steps in timing.step_ms[name]] == [6, 6, 6]
        assert all(ms > 0 for steps in timing.step_ms[name] for ms in steps)
    assert timing.active_experts["quarter"] == 2.0
    assert timing.active_experts["control"] == timing.active_experts["vanilla"] > 4
    assert timing.repeats == 3
    assert [len(rounds) for rounds in timing.warmup_ms.values()] == [timing.warmup_rounds] * 3
    assert sum(produced) == 3 * (timing.warmup_rounds + 3) * 6 * 8


def scripted(engine: Engine, prompts: list[list[int]], turns_ms: Iterable[float], **bounds: Any) -> Timing:
    """Two steps of vanilla and one policy, on a clock by which the steps of successive turns take `turns_ms`."""
    steps_ms = chain.from_iterable((0.0, ms) * 2 for ms in turns_ms)  # the clock is read before a step and after it
    clock = accumulate(ms / 1e3 for ms in steps_ms)
    with torch.inference_mode():
        return measure(
            engine.model,
            engine.routers,
            prompts[:2],
            engine._lane_alone,
            {"x": engine.bind(build_policy("no_drop"))},
            "decode",
            None,
            new_tokens=2,
            on_step=lambda _: None,
            clock=lambda: next(clock),
            **bounds,
        )


def test_warm_up_is_dropped_and_steady_repeats_end_early(engine: Engine, prompts: list[list[int]]) -> None:
    """Who goes first alternates: vanilla, x, x, vanilla, and so on; and anew from the first repeat."""
    warm = [80.0, 70.0, 3.0, 6.0, 6.0, 3.0]
    timing = scripted(engine, prompts, [*warm, *[6.0, 3.0, 3.0, 6.0] * 9], repeats=3, max_repeats=9, precision=0.01)
    assert timing.stable and timing.precision_reached
    assert (timing.warmup_rounds, timing.repeats) == (3, 3)
    assert timing.warmup_round_ms["vanilla"] == pytest.approx([80.0, 6.0, 6.0])
    assert timing.warmup_round_ms["x"] == pytest.approx([70.0, 3.0, 3.0])
    assert timing.step_time_ms("vanilla") == pytest.approx((6.0, 6.0, 6.0))
    assert timing.speedup("x") == pytest.approx((2.0, 2.0, 2.0))


def test_restless_times_end_at_the_cap(engine: Engine, prompts: list[list[int]]) -> None:
    restless = [9.0 * 0.9**turn for turn in range(2 * MAX_WARMUP)] + [1.0, 1.0, 2.0, 1.0] * 9
    timing = scripted(engine, prompts, restless, repeats=2, max_repeats=5, precision=0.02)
    assert (timing.stable, timing.warmup_rounds) == (False, MAX_WARMUP)
    assert (timing.precision_reached, timing.repeats) == (False, 5)
    assert timing.speedup("x") == pytest.approx((1.0, 0.5, 1.0))


@pytest.mark.parametrize("phases", ["prefill", "both"])
def test_other_phases_have_a_prefill_of_their_own(engine: Engine, prompts: list[list[int]], phases: str) -> None:
    policies = {"quarter": build_policy("lynx_v1_latency", keep_experts=2)}
    timing = engine.measure(prompts, batch_size=4, policies=policies, phases=phases, new_tokens=3, repeats=1)
    assert (timing.active_experts["quarter"] == 2.0) == (phases == "both")


def test_the_model_is_left_without_hooks(engine: Engine, prompts: list[list[int]]) -> None:
    engine.measure(prompts, batch_size=2, policies={"lynx": build_policy("lynx")}, new_tokens=2, repeats=1)
    assert not any(module._forward_hooks for module in engine.model.modules())


def timed(step_ms: dict[str, list[list[float]]]) -> Timing:
    return Timing(
        step_ms=step_ms,
        warmup_ms={name: [[99.0]] * 2 for name in step_ms},
        stable=True,
        precision_reached=True,
        active_experts={},
        batch_size=1,
        new_tokens=len(step_ms["vanilla"][0]),
    )


def test_medians_and_paired_ratios() -> None:
    """Vanilla 10, 20, 60 ms on average; the policy 5, 5, 30. Paired steps: 2, 2 / 2, 6 (so 4) / 2, 2."""
    step_ms = {"vanilla": [[10.0, 10.0], [10.0, 30.0], [60.0, 60.0]], "fast": [[5.0, 5.0], [5.0, 5.0], [30.0, 30.0]]}
    timing = timed(step_ms)
    assert timing.step_time_ms("vanilla")[0] == 20.0
    assert timing.speedup("fast") == (2.0, 2.0, 4.0)
    assert timing.speedup("vanilla") == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="measured: vanilla, fast"):
        timing.step_time_ms("slow")


def test_one_repeat_has_no_interval() -> None:
    timing = timed({"vanilla": [[10.0]], "x": [[5.0]]})
    assert timing.step_time_ms("x") == (5.0, None, None)
    assert timing.speedup("x") == (2.0, None, None)


@pytest.mark.parametrize(
    "call,message",
    [
        (dict(batch_size=99, policies={}), "only 32 prompts"),
        (dict(batch_size=2, policies={}, new_tokens=0), "new_tokens=0"),
        (dict(batch_size=2, policies={}, repeats=0), "repeats=0"),
        (dict(batch_size=2, policies={}, repeats=5, max_repeats=4), "max_repeats=4: must be at least repeats=5"),
        (dict(batch_size=2, policies={}, precision=0.0), "precision=0.0"),
        (dict(batch_size=2, policies={}, precision=1.0), "precision=1.0"),
        (dict(batch_size=2, policies={"vanilla": build_policy("lynx")}), "name vanilla is taken"),
        (dict(batch_size=2, policies={"x": build_policy("top_k", k=3)}), "k=3"),
    ],
)
def test_bad_calls_are_named(engine: Engine, prompts: list[list[int]], call: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.measure(prompts, **call)
