"""One cell on a loaded engine: requests -> lanes, each committed -> scores -> metrics -> latency -> DONE."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, cast

from lynx_exp.launch.cell import Cell
from lynx_exp.launch.metrics import cell_metrics
from lynx_exp.launch.progress import Progress
from lynx_exp.launch.references import References, fidelity_of
from lynx_exp.store.cell import CellWriter
from lynx_exp.store.identity import code_digest
from lynx_exp.store.provenance import provenance, scrub
from lynx_exp.store.tables import LaneRecord

if TYPE_CHECKING:
    from lynx_exp.engine import BatchPlan, Engine, LaneResult, Request
    from lynx_exp.routing import Phases, Policy
    from lynx_exp.tasks import EvalTask, Scores

_NEAR = 0.1
"""Relative: a knob that comes no nearer to the active experts asked for is worth a line."""


def execute(cell: Cell, engine: Engine, progress: Progress, references: References) -> None:
    """Run what is missing of `cell` and write its record. An exception is noted in the status and raised again."""
    requests = {task.name: _requests(task, engine) for task in cell.tasks}
    plans = {task.name: _plan(cell, task) for task in cell.tasks}
    writer = CellWriter.open(
        cell.folder,
        info=cell.info() | {"num_layers": engine.num_layers},
        config_yaml=cell.config_yaml(),
        provenance=provenance(
            code_digest(),
            {"id": cell.model.name, "digest": scrub(cell.model.digest), "dtype": cell.dtype, "device": cell.device},
            {task.name: task.data_digest for task in cell.tasks},
        ),
        plan={name: _plan_json(cell, plan) for name, plan in plans.items()},
    )
    try:
        policy = cell.policy
        extra: dict[str, Any] = {}
        if policy is not None and cell.config.match_active is not None:
            found = references.matched(
                cell, engine, lambda task: _requests(task, engine), lambda task: _plan(cell, task)
            )
            policy, extra["matched"] = found.policy, found.summary()
            if abs(found.active - found.target) > _NEAR * found.target:
                nearest = f"the nearest that {found.parameter} allows is {found.active:.2f} ({found.value:g})"
                progress.note(f"{cell.name}: {found.target:.2f} active experts wanted; {nearest}")
            progress.advance(("match", cell.config.batch_size), 1)
        for task in cell.tasks:
            _run_lanes(cell, policy, task, engine, requests[task.name], plans[task.name], writer, progress)
        timing_rows, timing_info, fidelity_rows = None, None, None
        if cell.config.measure.latency:
            timing_rows, timing_info = _measure(cell, policy, engine, requests, plans, progress)
        if policy is not None and cell.config.fidelity:
            fidelity_rows = []
            for task in cell.tasks:
                asked, plan = requests[task.name], plans[task.name]
                continued = references.continued(cell, task, engine, asked, plan, "fidelity")
                fidelity_rows += fidelity_of(cell, policy, task, engine, continued, plan)
            first = cell.tasks[0].name
            prompts = [requests[first][number].prompt_ids for number in plans[first].lanes[0]]
            extra["selection_us"] = engine.selection_time(policy, prompts)
            progress.advance(("fidelity", cell.config.batch_size), 1)
        scores = {task.name: task.score(_answers(task, writer.responses(task.name))) for task in cell.tasks}
        metrics = cell_metrics(
            [metric for of_task in scores.values() for metric in of_task.metrics],
            {task.name: writer.responses(task.name) for task in cell.tasks},
            list(writer.steps()),
            cell.config.batch_size,
            fidelity_rows,
        )
        metrics |= extra
        samples = [row for task in cell.tasks for row in _samples(task, scores[task.name], writer)]
        writer.finish(
            samples=samples,
            metrics=metrics,
            timing_rows=timing_rows,
            timing_info=timing_info,
            fidelity_rows=fidelity_rows,
        )
    except KeyboardInterrupt:
        writer.interrupt()
        raise
    except Exception as error:
        writer.fail(error, scrub(traceback.format_exc()))
        raise


def _requests(task: EvalTask, engine: Engine) -> list[Request]:
    """Token ids of the task's requests: prompts with their special tokens, continuations without."""
    from lynx_exp.engine import Request

    prompts = _encode(engine, [request.prompt for request in task.requests], special=True)
    if task.kind == "generate":
        readable = engine.tokenizer is not None  # else no stop string can be found
        return [
            Request(
                prompt_ids=tuple(ids),
                max_new_tokens=request.max_new_tokens,
                stop=tuple(request.until) if readable else (),
            )
            for ids, request in zip(prompts, task.requests, strict=True)
        ]
    texts = [request.continuation or "" for request in task.requests]
    continuations = _encode(engine, texts, special=False)
    return [
        Request(prompt_ids=tuple(ids), continuation_ids=tuple(more))
        for ids, more in zip(prompts, continuations, strict=True)
    ]


def _phases(cell: Cell) -> Phases:
    return cast("Phases", cell.config.phases)  # one of PHASES: Config has checked it


def _encode(engine: Engine, texts: list[str], *, special: bool) -> list[list[int]]:
    """Token ids. A model without a tokenizer (random weights) gets the text's bytes: as good as any for its latency."""
    if engine.tokenizer is not None:
        return engine.tokenizer(texts, add_special_tokens=special).input_ids
    vocabulary = engine.model.get_input_embeddings().num_embeddings
    return [[byte % vocabulary for byte in text.encode()] for text in texts]


def _plan(cell: Cell, task: EvalTask) -> BatchPlan:
    from lynx_exp.engine import BatchPlan

    groups = [request.doc_id for request in task.requests] if task.kind == "choice" else None
    return BatchPlan.static(len(task.requests), cell.config.batch_size, cell.config.seed, groups)


def _plan_json(cell: Cell, plan: BatchPlan) -> dict[str, Any]:
    lanes = [list(lane) for lane in plan.lanes]
    return {"batch_size": cell.config.batch_size, "seed": cell.config.seed, "digest": plan.digest(), "lanes": lanes}


def _run_lanes(
    cell: Cell,
    policy: Policy | None,
    task: EvalTask,
    engine: Engine,
    requests: Sequence[Request],
    plan: BatchPlan,
    writer: CellWriter,
    progress: Progress,
) -> None:
    missing = writer.missing(task.name)
    stage = (task.name, cell.config.batch_size)
    found = len(requests) - sum(len(plan.lanes[lane]) for lane in missing)
    progress.advance(stage, found, run=False)
    if not missing:
        return
    run = engine.run_lanes if task.kind == "generate" else engine.score_lanes
    acts: dict[str, Any] = {"phases": _phases(cell), "layers": cell.config.layers}
    results = run(requests, plan, policy, lanes=missing, on_step=progress.tokens, **acts)
    for result in results:
        writer.commit(_lane_record(task, requests, result))
        progress.advance(stage, len(result.requests))


def _lane_record(task: EvalTask, requests: Sequence[Request], result: LaneResult) -> LaneRecord:
    rows = []
    for slot, number in enumerate(result.requests):
        asked = task.requests[number]
        scored = result.logprobs is not None
        rows.append(
            {
                "subtask": task.name,
                "request": number,
                "doc_id": asked.doc_id,
                "lane": result.lane,
                "slot": slot,
                "prompt_hash": hashlib.sha256(asked.prompt.encode()).hexdigest()[:16],
                "prompt_tokens": len(requests[number].prompt_ids),
                "new_tokens": len(result.token_ids[slot]),
                "finish_reason": result.finish_reasons[slot],
                "response": asked.continuation if scored else result.texts[slot],
                "logprob": result.logprobs[slot] if result.logprobs is not None else None,
                "greedy": result.greedy[slot] if result.greedy is not None else None,
            }
        )
    return LaneRecord(
        subtask=task.name,
        lane=result.lane,
        rows=rows,
        live_rows=result.live_rows,
        active_experts=result.active_experts,
    )


def _answers(task: EvalTask, rows: Sequence[dict[str, Any]]) -> list[Any]:
    if task.kind == "generate":
        return [row["response"] for row in rows]
    return [(row["logprob"], row["greedy"]) for row in rows]


def _samples(task: EvalTask, scores: Scores, writer: CellWriter) -> list[dict[str, Any]]:
    lanes: dict[int, int] = {}
    for row in writer.responses(task.name):
        lanes.setdefault(row["doc_id"], row["lane"])
    return [
        {
            "subtask": task.name,
            "doc_id": sample.doc_id,
            "lane": lanes[sample.doc_id],
            "score": sample.score,
            "scores": json.dumps(sample.scores),
            "target": sample.target,
            "filtered": sample.filtered,
        }
        for sample in scores.samples
    ]


def _measure(
    cell: Cell,
    policy: Policy | None,
    engine: Engine,
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
        phases=_phases(cell),
        layers=cell.config.layers,
        new_tokens=measure.new_tokens,
        repeats=measure.repeats,
        on_step=progress.tokens,
    )
    progress.advance(("measure", batch_size), 1)
    rows = [
        {"name": name, "repeat": repeat, "step": step, "ms": ms}
        for name in timing.names
        for repeat, steps in enumerate(timing.step_ms[name])
        for step, ms in enumerate(steps)
    ]
    info = {
        "new_tokens": measure.new_tokens,
        "repeats": measure.repeats,
        "warmup": getattr(timing, "warmup", None),
        "batch_size": batch_size,
        "vanilla_active_experts": timing.active_experts["vanilla"],
        "policy_active_experts": timing.active_experts.get("policy"),
        "threads": torch.get_num_threads(),
    }
    return rows, info
