"""Who shares a lane with whom: the batch plan of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lynx_exp.config import Config
    from lynx_exp.engine import BatchPlan
    from lynx_exp.run.planned_cell import Cell, Task
    from lynx_exp.store.file_types import PlanEntry
    from lynx_exp.tasks import TaskRequest


def numbered_requests(task: Task) -> tuple[TaskRequest, ...]:
    """What the engine's requests are numbered by: those that are scored, then those that may fill lanes."""
    return (*task.requests, *task.fillers)


def plan_of(cell: Cell, task: Task) -> BatchPlan:
    """The cell's lanes. Requests of one document are in different lanes, as far apart as there is room, or with
    `choices=together` side by side; of a mix that is not shuffled each task's requests have lanes of their own."""
    from lynx_exp.engine import BatchPlan

    config, requests = cell.config, numbered_requests(task)
    if config.task.weights is None or config.task.mixing != "separate":
        return _plan(config, requests, range(len(requests)), len(task.requests))
    plans = []
    for subtask in dict.fromkeys(request.subtask for request in task.requests):
        numbers = [number for number, request in enumerate(requests) if request.subtask == subtask]
        scored = sum(number < len(task.requests) for number in numbers)
        plans.append(_plan(config, [requests[number] for number in numbers], numbers, scored))
    return BatchPlan(
        tuple(lane for plan in plans for lane in plan.lanes),
        slots=plans[0].slots,
        fillers=tuple(fillers for plan in plans for fillers in plan.fillers),
    )


def _plan(config: Config, requests: Sequence[TaskRequest], numbers: Sequence[int], scored: int) -> BatchPlan:
    """Lanes over the first `scored` of `requests`, filled with the others; `numbers`: of each in the plan."""
    from lynx_exp.engine import BatchPlan

    plan = lanes_over(
        requests,
        scored,
        batch_size=config.batch_size,
        batching=config.batching,
        waves=config.waves,
        tail=config.tail,
        choices=config.choices,
        seed=config.order_seed,
    )

    def named(lanes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(numbers[at] for at in lane) for lane in lanes)

    return BatchPlan(named(plan.lanes), slots=plan.slots, fillers=named(plan.fillers))


def lanes_over(
    requests: Sequence[TaskRequest],
    scored: int,
    *,
    batch_size: int,
    batching: str,
    waves: int,
    tail: str,
    choices: str,
    seed: int,
) -> BatchPlan:
    """Lanes over the first `scored` of `requests`, by numbers in it; the others fill them. The words are `Config`'s."""
    from lynx_exp.engine import BatchPlan
    from lynx_exp.engine.requests.plan import spread_groups, together

    documents = {document: number for number, document in enumerate(dict.fromkeys(map(_document, requests)))}
    groups = [documents[_document(request)] for request in requests]
    side_by_side = choices == "together" and bool(requests) and requests[0].continuation is not None
    if batching == "static":
        make = BatchPlan.static if side_by_side else BatchPlan.spread
        return make(scored, batch_size, seed, groups)
    order = (together if side_by_side else spread_groups)(scored, seed, groups)
    plan = BatchPlan.queues(order, batch_size, waves if batch_size > 1 else 1)  # rows alone share nothing: a lane each
    return plan.filled(range(scored, len(requests)), groups, seed) if tail == "filler" else plan


def check_documents(config: Config, task: Task) -> None:
    """ValueError if there are too few documents for one full lane: a batch is never filled up with copies."""
    separate = config.task.weights is not None and config.task.mixing == "separate"
    streams: dict[str, list[TaskRequest]] = {}
    for request in task.requests:
        streams.setdefault(request.subtask if separate else task.name, []).append(request)
    for name, requests in streams.items():
        documents = {*map(_document, requests)}
        documents |= {_document(r) for r in task.fillers if not separate or r.subtask == name}
        side_by_side = config.choices == "together" and requests[0].continuation is not None
        rows = len(requests) if side_by_side else len(documents)
        if rows < config.batch_size:
            raise ValueError(
                f"batch_size={config.batch_size}: {name} has {len(documents)} documents here, too few for one full "
                f"batch, and none stands in it twice; give limit={config.batch_size} or more, where the task has them, "
                f"or batch_size={rows} or less"
            )


def _document(request: TaskRequest) -> tuple[str, int]:
    return request.subtask, request.doc_id


def plan_json(cell: Cell, plan: BatchPlan) -> PlanEntry:
    """plan.json's entry of one subtask."""
    config = cell.config
    return {
        "batch_size": config.batch_size,
        "batching": config.batching,
        "tail": config.tail,
        "seed": config.seed,
        "plan_seed": config.order_seed,
        "digest": plan.digest(),
        "lanes": [list(lane) for lane in plan.lanes],
        "fillers": [list(lane) for lane in plan.fillers],
    }


def drained(plan: BatchPlan) -> int:
    """Lanes that have fewer fillers than slots, and so may drain, though fillers were wanted."""
    return sum(len(fillers) < (plan.slots or 0) for fillers in plan.fillers)
