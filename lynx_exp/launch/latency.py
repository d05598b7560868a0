"""Latency of one cell: one lane alone, interleaved with vanilla."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, cast

from lynx_exp.launch.cell import Cell
from lynx_exp.launch.progress import Progress

if TYPE_CHECKING:
    from lynx_exp.engine import BatchPlan, LaneEngine, Request
    from lynx_exp.routing import Phases, Policy


def measure_cell(
    cell: Cell,
    policy: Policy | None,
    engine: LaneEngine,
    requests: dict[str, list[Request]],
    plans: dict[str, BatchPlan],
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, Any]]]:
    """(rows of timing.parquet, timing.json, rows of breakdown.parquet). Prompts are the first in plan order, repeated
    if there are too few."""
    import torch

    measure, batch_size = cell.config.measure, cell.config.batch_size
    task = next((task for task in cell.tasks if task.kind == "generate"), cell.tasks[0])
    order = [number for lane in plans[task.name].lanes for number in lane]
    chosen = islice(cycle(order), batch_size)
    prompts = [_of_length(requests[task.name][number].prompt_ids, cell, engine) for number in chosen]
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "policies": {} if policy is None else {"policy": policy},
        "phases": cast("Phases", cell.config.phases),
        "layers": cell.config.layers,
    }
    until = {name: getattr(measure, name) for name in ("repeats", "max_repeats", "precision")}
    timing = engine.measure(prompts, new_tokens=measure.new_tokens, on_step=progress.tokens, **until, **common)
    if not timing.stable:
        progress.note(
            f"{cell.name}: steps still changing after {timing.warmup_rounds} rounds of warm-up; mind its latency"
        )
    progress.advance(cell, ("measure", batch_size), 1)
    rows = [
        {"name": name, "repeat": repeat, "step": step, "ms": ms}
        for name in timing.names
        for repeat, steps in enumerate(timing.step_ms[name])
        for step, ms in enumerate(steps)
    ]
    info = {
        "new_tokens": measure.new_tokens,
        "repeats": timing.repeats,
        "precision_reached": timing.precision_reached,
        "warmup_rounds": timing.warmup_rounds,
        "stable": timing.stable,
        "warmup_round_ms": timing.warmup_round_ms,
        "graphed": timing.graphed,
        "experts_implementation": timing.experts_implementation,
        "candidates_ms": timing.candidates_ms,
        "serving": timing.serving,
        "batch_size": batch_size,
        "vanilla_active_experts": timing.active_experts["vanilla"],
        "policy_active_experts": timing.active_experts.get("policy"),
        "threads": torch.get_num_threads(),
        "context": measure.context,
    }
    if measure.prefill:
        prefills = engine.measure_prefill(prompts, **until, **common)
        rows += [
            {"name": f"{name} prefill", "repeat": repeat, "step": 0, "ms": ms}
            for name, times in prefills.ms.items()
            for repeat, (ms,) in enumerate(times)
        ]
        info |= {f"{name}_prefill_active_experts": active for name, active in prefills.active_experts.items()}
        info |= {"prefill_tokens": prefills.prompt_tokens, "prefill_stable": prefills.stable}
    sections: list[dict[str, Any]] = []
    if measure.breakdown:
        found = engine.breakdown(prompts, new_tokens=measure.new_tokens, repeats=measure.repeats, **common)
        sections = [
            {"name": name, "repeat": repeat, "section": section, "ms": ms}
            for name, times in found.ms.items()
            for section, repeats in times.items()
            for repeat, ms in enumerate(repeats)
        ]
    return rows, info, sections


def _of_length(prompt: Sequence[int], cell: Cell, engine: LaneEngine) -> list[int]:
    """The prompt, repeated or cut to `measure.context` tokens."""
    wanted, room = cell.config.measure.context, cell.config.measure.new_tokens
    if wanted is None:
        return list(prompt)
    most = engine.context_length
    if most is not None and wanted + room > most:
        raise ValueError(f"measure.context={wanted}: and measure.new_tokens={room} exceed the model's {most} positions")
    return list(islice(cycle(prompt), wanted))
