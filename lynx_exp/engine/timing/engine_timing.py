"""Methods of `Engine` that time one lane alone: windows of a run's decode steps, steps after given prompts, a prefill,
and where a step's time goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from lynx_exp.engine.decoding.loaded import LoadedModel
from lynx_exp.engine.timing.breakdown import Breakdown, break_down
from lynx_exp.engine.timing.fastest_experts import choose_experts
from lynx_exp.engine.timing.hardware import hardware_of, meter_for
from lynx_exp.engine.timing.measure import Timing
from lynx_exp.engine.timing.measure import measure as measure_steps
from lynx_exp.engine.timing.prefill_timing import PrefillTiming, time_prefill
from lynx_exp.engine.timing.selection_time import selection_time as time_selection
from lynx_exp.engine.timing.window_batch import WindowBatch
from lynx_exp.engine.timing.window_timing import WindowTiming, check_windows
from lynx_exp.engine.timing.window_timing import measure_windows as time_model_windows
from lynx_exp.engine.timing.windows import Window
from lynx_exp.models.experts import using_experts
from lynx_exp.routing import Phases, Policy

OnStep = Callable[[int], None]
Prompts = Sequence[str] | Sequence[Sequence[int]]


def _silent(*_said: object) -> None:
    """Progress that nobody watches."""


def measure_windows(
    self: LoadedModel,
    windows: Sequence[Window],
    *,
    policies: Mapping[str, Policy],
    phases: Phases = "decode",
    layers: str | None = None,
    repeats: int = 2,
    least: int | None = None,
    precision: float = 0.02,
    on_step: OnStep = _silent,
) -> WindowTiming:
    """Time windows of a run (`draw_windows`) under vanilla and each policy, interleaved: the first `least` of them
    (None: all), and on while the 95 % interval of a speed-up is wider than +- `precision`, relative to it."""
    if not self.has_slots:
        raise ValueError(f"{type(self.model).__name__}: timing its windows needs slots")
    check_windows(
        policies, windows, repeats=repeats, least=len(windows) if least is None else least, precision=precision
    )
    # how experts are computed is chosen on rows of the run itself, and kept for all subjects
    first = [windows[0].contexts[seat.row] for seat in windows[0].steps[0]]
    chosen, candidates = choose_experts(self, first)

    def batch(rows: int, positions: int) -> WindowBatch:
        return WindowBatch(self.model, self._make_decoder(), rows, positions, self._budget() // 4)

    with torch.inference_mode(), using_experts(self.model, chosen):
        timing = time_model_windows(
            self.model,
            self.routers,
            batch,
            windows,
            _bound(self, policies),
            phases,
            layers,
            repeats=repeats,
            least=len(windows) if least is None else least,
            precision=precision,
            on_step=on_step,
            capture=self.steps.capture,
            meter=meter_for(self.model, self.routers),
        )
    return replace(
        timing,
        experts_implementation=chosen,
        candidates_ms=candidates,
        experts_note=self.experts_note,
        compiled=self.steps.compiled,
        hardware=hardware_of(self.model, self.routers),
    )


def measure(
    self: LoadedModel,
    prompts: Prompts,
    *,
    batch_size: int,
    policies: Mapping[str, Policy],
    phases: Phases = "decode",
    layers: str | None = None,
    new_tokens: int = 32,
    repeats: int = 5,
    max_repeats: int | None = None,
    precision: float = 0.02,
    on_step: OnStep = _silent,
) -> Timing:
    """Time decode steps of one lane, the first `batch_size` prompts, under vanilla and each policy, interleaved.

    After a warm-up until steps are stable, `repeats` times; and on up to `max_repeats` (None: no more) while the
    95 % interval of a speed-up is wider than +- `precision`, relative to its median.
    """
    encoded = _lane(self, prompts, batch_size)
    check_distinct(encoded)
    chosen, candidates = choose_experts(self, encoded)
    with torch.inference_mode(), using_experts(self.model, chosen):
        timing = measure_steps(
            self.model,
            self.routers,
            encoded,
            self._lane_alone,
            _bound(self, policies),
            phases,
            layers,
            new_tokens=new_tokens,
            repeats=repeats,
            max_repeats=repeats if max_repeats is None else max_repeats,
            precision=precision,
            on_step=on_step,
            capture=self.steps.capture if self.has_slots else None,
            meter=meter_for(self.model, self.routers),
        )
    return replace(
        timing,
        experts_implementation=chosen,
        candidates_ms=candidates,
        compiled=self.steps.compiled,
        hardware=hardware_of(self.model, self.routers),
    )


def measure_prefill(
    self: LoadedModel,
    prompts: Prompts,
    *,
    batch_size: int,
    policies: Mapping[str, Policy],
    phases: Phases = "both",
    layers: str | None = None,
    repeats: int = 5,
    max_repeats: int | None = None,
    precision: float = 0.02,
) -> PrefillTiming:
    """Time the prefill of one lane as `measure` does its steps, experts computed in the same way. A policy that does
    not act on prompts is not timed: its prefill is vanilla's."""
    encoded = _lane(self, prompts, batch_size)
    acting = _bound(self, policies) if phases in ("prefill", "both") else {}
    with torch.inference_mode(), using_experts(self.model, choose_experts(self, encoded)[0]):
        return time_prefill(
            self.model,
            self.routers,
            encoded,
            acting,
            phases,
            layers,
            repeats=repeats,
            max_repeats=repeats if max_repeats is None else max_repeats,
            precision=precision,
        )


def breakdown(
    self: LoadedModel,
    prompts: Prompts,
    *,
    batch_size: int,
    policies: Mapping[str, Policy],
    phases: Phases = "decode",
    layers: str | None = None,
    new_tokens: int = 16,
    repeats: int = 5,
) -> Breakdown:
    """Where the time of a decode step of one lane goes: attention, router, policy, experts, and the rest."""
    encoded = _lane(self, prompts, batch_size)
    if not self.has_slots:
        raise ValueError(f"{type(self.model).__name__}: a breakdown needs full attention in every layer")
    with torch.inference_mode(), using_experts(self.model, choose_experts(self, encoded)[0]):
        return break_down(
            self.model,
            self.routers,
            self._plain_decoder(),
            encoded,
            _bound(self, policies),
            phases,
            layers,
            new_tokens=new_tokens,
            repeats=repeats,
        )


def _lane(self: LoadedModel, prompts: Prompts, batch_size: int) -> list[tuple[int, ...]]:
    if len(prompts) < batch_size:
        raise ValueError(f"batch_size={batch_size}: only {len(prompts)} prompts given to measure")
    return [self.encode(prompt) for prompt in prompts[:batch_size]]


def check_distinct(prompts: Sequence[tuple[int, ...]]) -> None:
    """ValueError if one comes twice."""
    if (different := len(set(prompts))) < len(prompts):
        raise ValueError(
            f"prompts: only {different} of {len(prompts)} differ; copies choose the same experts, and a batch of them "
            "is faster than any real one: give other prompts, or a smaller batch_size"
        )


def _bound(self: LoadedModel, policies: Mapping[str, Policy]) -> dict[str, Policy]:
    return {name: self.bind(policy) for name, policy in policies.items()}


def selection_time(self: LoadedModel, policy: Policy, prompts: Sequence[Sequence[int]]) -> float:
    """Microseconds per layer that the policy's selection takes in one decode step of a lane of `prompts`."""
    return time_selection(self.model, self.routers, self.bind(policy), prompts)
