"""Methods of `Engine` that time one lane alone: windows of a run's decode steps, steps after given prompts, a prefill,
and where a step's time goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from lynx_exp.engine.decoding.loaded import LoadedModel
from lynx_exp.engine.timing.bandwidth import hardware_of, meter_for
from lynx_exp.engine.timing.breakdown import Breakdown, break_down
from lynx_exp.engine.timing.fastest_experts import choose_experts
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
    """Time windows of a run under vanilla and each policy, interleaved.

    Args:
        windows: Drawn from the steps of a run by `draw_windows`.
        policies: By the names that results bear; vanilla is always among them.
        phases: In which phases of a token the policies act: decode, prefill, both or none.
        layers: Where they act, as numbers and ranges of layers with routed experts; None for all.
        repeats: Turns of each subject in a window.
        least: Windows that are timed in any case; None for all. Then on while an interval is too wide.
        precision: Half-width of the 95 % interval of every speed-up, relative to it, at which to stop.
        on_step: Called with the number of tokens of each turn.

    Returns:
        Milliseconds of each step (`StepTime`), whether warm-up settled, whether the precision was reached.

    Raises:
        ValueError: The model's cache has no slots, or an argument is out of range.
    """
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
    """Time decode steps of one lane under vanilla and each policy, interleaved, after a warm-up.

    Args:
        prompts: Texts or token ids, all different; the first `batch_size` are the lane.
        batch_size: Rows of the lane.
        policies: By the names that results bear; vanilla is always among them.
        phases: In which phases of a token the policies act: decode, prefill, both or none.
        layers: Where they act, as numbers and ranges of layers with routed experts; None for all.
        new_tokens: Steps of a repeat.
        repeats: Repeats of each subject at least.
        max_repeats: Up to this many while an interval is too wide; None for no more than `repeats`.
        precision: Half-width of the 95 % interval of every speed-up, relative to its median, at which to stop.
        on_step: Called with the number of tokens of each repeat.

    Returns:
        Milliseconds of each step, active experts, speed-ups with their intervals, bytes and joules where known.

    Raises:
        ValueError: Too few prompts, two that are equal, a cache that cannot be rewound, or an argument out of range.
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
    """Time the prefill of one lane as `measure` does its steps, experts computed in the same way.

    Args:
        prompts: Texts or token ids; the first `batch_size` are the lane.
        batch_size: Rows of the lane.
        policies: By the names that results bear; vanilla is always among them.
        phases: In which phases of a token the policies act: decode, prefill, both or none.
        layers: Where they act, as numbers and ranges of layers with routed experts; None for all.
        repeats: Repeats of each subject at least.
        max_repeats: Up to this many while an interval is too wide; None for no more than `repeats`.
        precision: As for `measure`.

    Returns:
        Milliseconds of each repeat. Policies that do not act on prompts are left out: their prefill is vanilla's.

    Raises:
        ValueError: Too few prompts, or an argument out of range.
    """
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
    """Where the time of a decode step of one lane goes: attention, router, policy, experts, and the rest.

    Args:
        prompts: Texts or token ids; the first `batch_size` are the lane.
        batch_size: Rows of the lane.
        policies: By the names that results bear; vanilla is always among them.
        phases: In which phases of a token the policies act: decode, prefill, both or none.
        layers: Where they act, as numbers and ranges of layers with routed experts; None for all.
        new_tokens: Steps of a repeat.
        repeats: Repeats of each subject.

    Returns:
        Milliseconds a step of each section, by subject and repeat. Marks between sections cost time: their sum is not
        a step's time.

    Raises:
        ValueError: Too few prompts, or a model whose cache has no slots.
    """
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
    """What the policy's selection takes in one decode step of a lane.

    Args:
        policy: Not vanilla.
        prompts: Token ids of the lane's rows.

    Returns:
        Microseconds, mean over layers.

    Raises:
        ValueError: The model cannot run the policy.
    """
    return time_selection(self.model, self.routers, self.bind(policy), prompts)
