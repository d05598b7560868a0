"""Latency of one cell: one lane alone, interleaved with vanilla."""

from __future__ import annotations

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
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows of timing.parquet, timing.json). Prompts are the first in plan order, repeated if there are too few."""
    import torch

    measure, batch_size = cell.config.measure, cell.config.batch_size
    task = next((task for task in cell.tasks if task.kind == "generate"), cell.tasks[0])
    order = [number for lane in plans[task.name].lanes for number in lane]
    chosen = islice(cycle(order), batch_size)
    timing = engine.measure(
        [list(requests[task.name][number].prompt_ids) for number in chosen],
        batch_size=batch_size,
        policies={} if policy is None else {"policy": policy},
        phases=cast("Phases", cell.config.phases),
        layers=cell.config.layers,
        new_tokens=measure.new_tokens,
        repeats=measure.repeats,
        max_repeats=measure.max_repeats,
        precision=measure.precision,
        on_step=progress.tokens,
    )
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
    }
    return rows, info
