"""Timing: what is timed and how it is summed up; never how long it took."""

from __future__ import annotations

import pytest

from lynx_exp import Engine, build_policy
from lynx_exp.engine import Timing


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
    assert sum(produced) == 3 * 3 * 6 * 8


@pytest.mark.parametrize("phases", ["prefill", "both"])
def test_other_phases_have_a_prefill_of_their_own(engine: Engine, prompts: list[list[int]], phases: str) -> None:
    policies = {"quarter": build_policy("lynx_v1_latency", keep_experts=2)}
    timing = engine.measure(prompts, batch_size=4, policies=policies, phases=phases, new_tokens=3, repeats=1)
    assert (timing.active_experts["quarter"] == 2.0) == (phases == "both")


def test_the_model_is_left_without_hooks(engine: Engine, prompts: list[list[int]]) -> None:
    engine.measure(prompts, batch_size=2, policies={"lynx": build_policy("lynx")}, new_tokens=2, repeats=1)
    assert not any(module._forward_hooks for module in engine.model.modules())


def test_medians_and_paired_ratios() -> None:
    """Vanilla 10, 20, 60 ms on average; the policy 5, 5, 30. Paired steps: 2, 2 / 2, 6 (so 4) / 2, 2."""
    step_ms = {"vanilla": [[10.0, 10.0], [10.0, 30.0], [60.0, 60.0]], "fast": [[5.0, 5.0], [5.0, 5.0], [30.0, 30.0]]}
    timing = Timing(step_ms=step_ms, active_experts={}, batch_size=1, new_tokens=2)
    assert timing.tpot_ms("vanilla")[0] == 20.0
    assert timing.speedup("fast") == (2.0, 2.0, 4.0)
    assert timing.speedup("vanilla") == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="measured: vanilla, fast"):
        timing.tpot_ms("slow")


def test_one_repeat_has_no_interval() -> None:
    timing = Timing(step_ms={"vanilla": [[10.0]], "x": [[5.0]]}, active_experts={}, batch_size=1, new_tokens=1)
    assert timing.tpot_ms("x") == (5.0, None, None)
    assert timing.speedup("x") == (2.0, None, None)


@pytest.mark.parametrize(
    "call,message",
    [
        (dict(batch_size=99, policies={}), "only 32 prompts"),
        (dict(batch_size=2, policies={}, new_tokens=0), "new_tokens=0"),
        (dict(batch_size=2, policies={}, repeats=0), "repeats=0"),
        (dict(batch_size=2, policies={"vanilla": build_policy("lynx")}), "name vanilla is taken"),
        (dict(batch_size=2, policies={"x": build_policy("top_k", k=3)}), "k=3"),
    ],
)
def test_bad_calls_are_named(engine: Engine, prompts: list[list[int]], call: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.measure(prompts, **call)
