"""Latency of one cell: windows of the decode steps that its own run did, interleaved with vanilla."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, TypedDict, cast

from lynx_exp.cores import usable_cores
from lynx_exp.run.planned_cell import Cell
from lynx_exp.run.run_progress import Progress
from lynx_exp.run.threads import OtherLoad
from lynx_exp.store.cell_writer import NOT_TIMED
from lynx_exp.store.row_types import BreakdownRow, TimingRow

if TYPE_CHECKING:
    from lynx_exp.engine import LaneEngine, LaneRun, Request, Window, WindowTiming
    from lynx_exp.routing import Phases, Policy
    from lynx_exp.store.tables import LaneRecord

Measured = tuple[list[TimingRow] | None, dict[str, object] | None, list[BreakdownRow]]
"""Rows of timing.parquet, timing.json, rows of breakdown.parquet."""


class _Common(TypedDict):
    """What all that is timed is given."""

    policies: dict[str, Policy]
    phases: Phases
    layers: str | None


class _Until(TypedDict):
    """When a measurement of prefills ends."""

    repeats: int
    max_repeats: int
    precision: float


def measure_cell(
    cell: Cell,
    policy: Policy | None,
    engine: LaneEngine,
    requests: Mapping[str, list[Request]],
    lanes: Mapping[str, Mapping[int, LaneRecord]],
    progress: Progress,
    note: Callable[[str], None],
) -> Measured:
    """Time windows of the lanes that the cell has run. A run without a place for one is not timed, and `note`
    told why."""
    from lynx_exp.engine import draw_windows
    from lynx_exp.engine.timing.windows import at_context, cut_or_repeat

    measure, batch_size = cell.config.measure, cell.config.batch_size
    runs = list(_runs(cell, requests, lanes))
    try:
        # drawn from the steps that the cell has recorded, so that times are of the very batches that were scored
        windows = list(draw_windows(runs, measure.new_tokens, measure.max_windows, cell.config.order_seed))
    except ValueError as error:
        note(f"{cell.name}: {NOT_TIMED} {error}")
        progress.advance(cell, ("measure", batch_size), 1)
        return None, None, []
    # of a lane that was run, not any prompts: prefill and sections are then of the same batch as the first window
    prompts = _prompts(windows[0], runs, batch_size)
    if measure.context is not None:
        most = engine.context_length
        if most is not None and measure.context + measure.new_tokens > most:
            raise ValueError(
                f"measure.context={measure.context}: with measure.new_tokens={measure.new_tokens} beyond the model's "
                f"{most} positions"
            )
        # all rows are brought to one length; who is in which lane stays as it was
        windows = [at_context(window, measure.context) for window in windows]
        prompts = [cut_or_repeat(prompt, measure.context) for prompt in prompts]
    common: _Common = {
        "policies": {} if policy is None else {"policy": policy},
        "phases": cast("Phases", cell.config.phases),  # one of PHASES: Config has checked it
        "layers": cell.config.layers,
    }
    # neighbours are looked at between steps: with the median a reader can tell a busy machine
    others = OtherLoad()

    def on_step(tokens: int) -> None:
        others.look()
        progress.tokens(tokens)

    timing = engine.measure_windows(
        windows,
        repeats=measure.repeats,
        least=min(measure.windows, len(windows)),
        precision=measure.precision,
        on_step=on_step,
        **common,
    )
    if timing.experts_note is not None:
        note(f"{cell.name}: {timing.experts_note}")
    if timing.steps_note is not None:
        note(f"{cell.name}: timed steps are launched from Python: {timing.steps_note}")
    # said and recorded, not refused: the interval shows what it is worth
    if not timing.stable:
        rounds = len(timing.warmup_ms["vanilla"])
        progress.note(f"{cell.name}: steps still changing after {rounds} rounds of warm-up; mind its latency")
    rows = timing_rows(timing)
    # how busy the machine was stands beside the times: a reader of the table has no other way to know
    info = _info(cell, timing) | {"other_threads": others.median(), "cpus": usable_cores()}
    # timed apart: a prompt enters once, a step comes with every token
    if measure.prefill:
        until: _Until = {
            "repeats": measure.windows,
            "max_repeats": measure.max_windows,
            "precision": measure.precision,
        }
        prefills = engine.measure_prefill(prompts, batch_size=len(prompts), **until, **common)
        context = sum(map(len, prompts)) / len(prompts)
        rows += [
            {
                **_place(0, timing.windows[0]),
                "step": 0,
                "live_rows": len(prompts),
                "context": context,
                "name": f"{name} prefill",
                "repeat": repeat,
                "active_experts": prefills.active_experts[name],
                "ms": ms,
            }
            for name, times in prefills.ms.items()
            for repeat, (ms,) in enumerate(times)
        ]
        info |= {f"{name}_prefill_active_experts": active for name, active in prefills.active_experts.items()}
        info |= {"prefill_tokens": prefills.prompt_tokens, "prefill_stable": prefills.stable}
    sections: list[BreakdownRow] = []
    # a run of its own: the marks between sections cost time
    if measure.breakdown:
        found = engine.breakdown(
            prompts, batch_size=len(prompts), new_tokens=measure.new_tokens, repeats=measure.windows, **common
        )
        sections = [
            {"name": name, "repeat": repeat, "section": section, "ms": ms}
            for name, times in found.ms.items()
            for section, repeats in times.items()
            for repeat, ms in enumerate(repeats)
        ]
    progress.advance(cell, ("measure", batch_size), 1)
    return rows, info, sections


def _runs(
    cell: Cell, requests: Mapping[str, list[Request]], lanes: Mapping[str, Mapping[int, LaneRecord]]
) -> Iterable[LaneRun]:
    """Lanes of all tasks that generate; where none does, of those whose choices were decoded."""
    from lynx_exp.engine import LaneRun

    # choices are decoded token by token only with scoring=decode; their steps stand in for a run that generates nothing
    generating = [task for task in cell.tasks if task.kind == "generate"]
    for task in generating or (cell.tasks if cell.config.scoring == "decode" else ()):
        for number, lane in sorted(lanes[task.name].items()):
            yield LaneRun(
                subtask=task.name,
                lane=number,
                prompts=[requests[task.name][row["request"]].prompt_ids for row in lane.rows],
                tokens=[row["token_ids"] for row in lane.rows],
                slots=[row["slot"] for row in lane.rows],
                entered=[row["entered_step"] for row in lane.rows],
            )


def _prompts(window: Window, runs: Iterable[LaneRun], batch_size: int) -> list[tuple[int, ...]]:
    """That the window's lane began with."""
    run = next(run for run in runs if (run.subtask, run.lane) == (window.subtask, window.lane))
    return [tuple(prompt) for prompt in run.prompts[:batch_size]]


class _Place(TypedDict):
    """Of a window: columns that all its rows share."""

    window: int
    subtask: str
    lane: int
    start_step: int


def _place(number: int, window: Window) -> _Place:
    return {"window": number, "subtask": window.subtask, "lane": window.lane, "start_step": window.start}


def timing_rows(timing: WindowTiming) -> list[TimingRow]:
    """Rows of timing.parquet."""
    places = [_place(number, window) for number, window in enumerate(timing.windows)]
    steps = [
        [(len(seats), window.mean_context(step)) for step, seats in enumerate(window.steps)]
        for window in timing.windows
    ]
    rows: list[TimingRow] = []
    for row in timing.rows:
        live, context = steps[row.window][row.step]
        rows.append(
            {
                **places[row.window],
                "name": row.name,
                "repeat": row.repeat,
                "step": row.step,
                "ms": row.ms,
                "active_experts": row.active_experts,
                "live_rows": live,
                "context": context,
            }
        )
    return rows


def _info(cell: Cell, timing: WindowTiming) -> dict[str, object]:
    import torch

    measure = cell.config.measure
    return {
        "windows": len(timing.windows),
        "new_tokens": measure.new_tokens,
        "repeats": measure.repeats,
        "precision": measure.precision,
        "precision_reached": timing.precision_reached,
        "warmup_rounds": len(timing.warmup_ms["vanilla"]),
        "stable": timing.stable,
        "warmup_round_ms": {
            name: [sorted(steps)[len(steps) // 2] for steps in rounds] for name, rounds in timing.warmup_ms.items()
        },
        "graphed": timing.graphed,
        "compiled": timing.compiled,
        "steps_note": timing.steps_note,
        "experts_implementation": timing.experts_implementation,
        "candidates_ms": timing.candidates_ms,
        "experts_note": timing.experts_note,
        "serving": timing.serving,
        "batch_size": cell.config.batch_size,
        "vanilla_active_experts": timing.active_experts("vanilla"),
        "policy_active_experts": timing.active_experts("policy") if "policy" in timing.names else None,
        "threads": torch.get_num_threads(),
        "context": measure.context,
        **_hardware(timing),
    }


def _hardware(timing: WindowTiming) -> dict[str, object]:
    """What it gave, as far as it is known: a field that is not there was not measured."""
    found: dict[str, object] = {f"{name}_j_per_token": joules for name, joules in timing.joules_per_token.items()}
    if timing.hardware is not None:
        found |= {"bytes": asdict(timing.hardware.bytes)}
        found |= {"copy_gb_s": timing.hardware.copy_gb_s, "devices": timing.hardware.devices}
    for name in timing.names:
        used = timing.bandwidth(name)
        if used is not None:
            found |= {f"{name}_{what}": value for what, value in asdict(used).items()}
    return found
