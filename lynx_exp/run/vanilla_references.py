"""Vanilla's own responses, against which policies are compared and their knobs set. Made once for all cells of a
pair."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from lynx_exp.run.cell_rows import token_table
from lynx_exp.run.load_tasks import LoadTask, filled, tasks_of
from lynx_exp.run.planned_cell import Cell, Task

if TYPE_CHECKING:
    from lynx_exp.engine import BatchPlan, LaneEngine, Matched, Request
    from lynx_exp.routing import Phases, Policy
    from lynx_exp.store.row_types import FidelityRow

CALIBRATION_REQUESTS = 32
"""Documents, at least, on which a knob is set; one lane's queue where that is more."""

Encode = Callable[[Task], list["Request"]]
Plan = Callable[[Task], "BatchPlan"]


class References:
    """Belongs to one engine."""

    def __init__(self, load: LoadTask) -> None:
        self._load = load
        self._continued: dict[tuple[str, str, str], list[Request]] = {}
        self._matched: dict[tuple[str, str], Matched] = {}

    def continued(
        self, cell: Cell, task: Task, engine: LaneEngine, requests: Sequence[Request], plan: BatchPlan, use: str
    ) -> list[Request]:
        """The requests with vanilla's responses as continuations (those of choices already have theirs)."""
        key = (use, cell.pair_id, task.name)
        if key not in self._continued:
            found = list(requests)
            if task.kind == "generate":
                planned = {number for lane in plan.lanes for number in lane}
                for lane in engine.run_lanes(requests, plan):
                    for at, (number, tokens) in enumerate(zip(lane.requests, lane.token_ids, strict=True)):
                        longer = number not in planned and len(tokens) > len(found[number].continuation_ids)
                        if at < lane.own or longer:  # of a filler, which lanes cut, the longest
                            found[number] = replace(requests[number], continuation_ids=tuple(tokens))
            self._continued[key] = found
        return self._continued[key]

    def matched(self, cell: Cell, engine: LaneEngine, encode: Encode, plan_of: Plan) -> Matched:
        """The cell's policy with its knob set for `match_active`, on documents that the cell does not score, where
        there are more than it does; else on its first. No score is looked at."""
        target, policy = cell.config.match_active, cell.policy
        assert target is not None and policy is not None
        key = (cell.pair_id, f"{cell.config.policy} {cell.config.phases} {cell.config.layers}")
        if key not in self._matched:
            task = next((task for task in cell.tasks if task.kind == "generate"), cell.tasks[0])
            calibration = self._calibration(cell, task)
            requests, plan = encode(calibration), plan_of(calibration)
            continued = self.continued(cell, calibration, engine, requests, plan, "match")
            phases = cast("Phases", cell.config.phases)
            self._matched[key] = engine.match_active(policy, target, continued, plan, phases, layers=cell.config.layers)
        return self._matched[key]

    def _calibration(self, cell: Cell, task: Task) -> Task:
        wanted = max(CALIBRATION_REQUESTS, cell.config.waves * cell.config.batch_size)
        scored = cell.config.limit or 0
        at = cell.tasks.index(task)
        longer = tasks_of(cell.config, self._load, scored + 2 * wanted)[at]
        asked = {(request.subtask, request.doc_id) for request in task.requests}
        others = copy(longer)  # only its requests are used
        if cell.config.limit is not None and len(longer.requests) > len(task.requests):
            others.requests = tuple(r for r in longer.requests if (r.subtask, r.doc_id) not in asked)
        documents = list(dict.fromkeys((r.subtask, r.doc_id) for r in others.requests))
        kept = set(documents[:wanted])
        if len(kept) == len(documents):
            return others
        chosen = copy(others)
        chosen.requests = tuple(r for r in others.requests if (r.subtask, r.doc_id) in kept)
        return filled(chosen, others.requests, others.data_digest) if cell.config.is_filled else chosen


def fidelity_rows(
    engine: LaneEngine,
    policies: Sequence[tuple[Policy | None, Phases, str | None]],
    task: Task,
    continued: Sequence[Request],
    plan: BatchPlan,
    tokens: Collection[int] = (),
) -> Iterator[tuple[int, FidelityRow, pa.Table | None]]:
    """(number of the policy, row of its fidelity.parquet, rows of its tokens.parquet) for each request; the last of
    those whose numbers are in `tokens`."""
    acts = [engine.act(policy, phases, layers) for policy, phases, layers in policies]
    for each in engine.fidelity_of(continued, plan, acts, tokens=tuple(tokens)):
        row: FidelityRow = {
            "subtask": task.requests[each.request].subtask or task.name,
            "request": each.request,
            "doc_id": task.requests[each.request].doc_id,
            "lane": each.lane,
            "tokens": each.tokens,
            "kl": each.kl,
            "agreeing": each.agreeing,
            "retained": each.retained,
            "prompt_tokens": each.prompt_tokens,
            "prompt_retained": each.prompt_retained,
        }
        yield each.act, row, token_table(row, each.token_rows) if each.token_rows is not None else None
