"""A cell of a pack from its first request to DONE: what it asks, how it is laid out in lanes, where it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, cast

import pyarrow as pa

from lynx_exp.run.planned_cell import Cell, Task
from lynx_exp.store.cell_writer import CellWriter
from lynx_exp.store.hold import ClaimLost

if TYPE_CHECKING:
    from lynx_exp.engine import BatchPlan, Job, LaneEngine, Request
    from lynx_exp.routing import Phases, Policy
    from lynx_exp.store.row_types import FidelityRow

Encoded = dict[str, "list[Request]"]
"""Requests of a subtask. The cells of a pack have the same ones, once."""


class _Acts(TypedDict):
    """Where a policy acts."""

    phases: Phases
    layers: str | None


@dataclass(kw_only=True, eq=False)
class Attempt:
    """One cell of a pack, begun."""

    cell: Cell
    requests: Encoded
    plans: dict[str, BatchPlan]
    writer: CellWriter
    policy: Policy | None
    """With its knob set, where `match_active` asks for that."""
    numerics: Mapping[str, str]
    """What of the software, the model and the machine can change a bit."""
    extra: dict[str, object] = field(default_factory=dict)
    """More metrics."""
    fidelity: list[FidelityRow] | None = None
    tokens: list[pa.Table] | None = None

    @property
    def phases(self) -> Phases:
        return cast("Phases", self.cell.config.phases)  # one of PHASES: Config has checked it

    @property
    def acts(self) -> _Acts:
        return {"phases": self.phases, "layers": self.cell.config.layers}

    @property
    def compares(self) -> bool:
        """Whether its distributions are compared with vanilla's."""
        return self.policy is not None and self.cell.config.fidelity

    def job(self, task: Task, engine: LaneEngine) -> Job:
        """Its missing lanes of a task that generates."""
        missing = self.writer.missing(task.name)
        return engine.job(self.requests[task.name], self.plans[task.name], self.policy, lanes=missing, **self.acts)


def note_further(attempts: Iterable[Attempt]) -> None:
    """Should the process be killed from now on, it is no failure of theirs."""
    for attempt in attempts:
        with suppress(ClaimLost):  # its own next commit sees it, and drops the cell
            attempt.writer.note_kept()
