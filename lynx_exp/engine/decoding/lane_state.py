"""A lane between two steps: all that its further steps follow from, so that another process can go on with it.

No random generator is among it: what is drawn, by a request or by a policy, is a function of a seed and of the number
of the step; and a policy keeps nothing from one step to the next. Nor is who else was in the physical batch: a lane
gives the same beside others.

L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lynx_exp.engine.decoding.lane import Lane, Row
from lynx_exp.engine.kv_cache.kept import Part, Parts, put, take
from lynx_exp.engine.kv_cache.slots import Slots
from lynx_exp.engine.requests.plan import Request
from lynx_exp.engine.requests.stopping import Stopper


@dataclass(frozen=True, kw_only=True)
class LaneState:
    """JSON and tensors."""

    lane: int
    about: Mapping[str, Any]
    parts: Parts

    @property
    def steps(self) -> int:
        """Decode steps that it has done."""
        return self.parts["counts"].shape[0]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())


States = Callable[[], Iterator[tuple[int, LaneState]]]
"""(number of the job, state) of each lane that is being decoded, as it is when it is asked for."""


class Keeper(Protocol):
    """Keeps the states of lanes that are being decoded, and has them of an earlier run."""

    def found(self, job: int, lane: int) -> LaneState | None:
        """Where the lane stood when it was last kept; None: it begins. Asked for as the lane is let in."""
        ...

    def between_steps(self, states: States) -> bool:
        """Called after each step: whether it has kept `states`, which takes time. What it raises ends the decoding."""
        ...


def state_of(lane: Lane, live: Sequence[Row], seats: Sequence[int], slots: Slots, counts: Tensor) -> LaneState:
    """`live`: its live rows, `seats`: where each is in the slots; `counts`: `[steps, 2, L]`, active experts and
    assignments changed of each of its steps. Tensors are read from the slots when they are asked for."""
    at = {id(row): number for number, row in enumerate(lane.rows)}
    about = {
        "queue": list(lane.queue),
        "fillers": list(lane.fillers),
        "admissions": lane.admissions,
        "prompt_tokens": lane.prompt_tokens,
        "rows": [row.about() for row in lane.rows],
        "live": [at[id(row)] for row in live],
    }
    tokens = [token for row in lane.rows for token in row.tokens]
    own = {"tokens": torch.tensor(tokens), "counts": counts.long()}
    own["live_rows"] = torch.tensor([lane.live_rows, lane.scored_rows], dtype=torch.long)
    if lane.prompt_changed is not None:
        own["prompt_changed"] = lane.prompt_changed
    parts = {name: Part.of(tensor) for name, tensor in own.items()}
    parts |= take(slots, seats, [row.positions for row in live])
    return LaneState(lane=lane.number, about=about, parts=parts)


def go_on(
    lane: Lane, state: LaneState, requests: Sequence[Request], stopper: Stopper, device: torch.device
) -> list[Row]:
    """Bring a lane that has not begun to where `state` has it; its live rows, whose keys and values `put_rows` brings.

    What a state says is trusted: whoever keeps it knows whether it is the one that was written.
    """
    about, tensors = state.about, {name: state.parts[name].make() for name in ("tokens", "live_rows")}
    lane.queue, lane.fillers = list(about["queue"]), list(about["fillers"])
    lane.admissions, lane.prompt_tokens = about["admissions"], about["prompt_tokens"]
    if "prompt_changed" in state.parts:
        lane.prompt_changed = state.parts["prompt_changed"].make().to(device)
    lane.live_rows, lane.scored_rows = tensors["live_rows"].tolist()
    tokens, start = tensors["tokens"].tolist(), 0
    for told in about["rows"]:
        end = start + told["tokens"]
        lane.rows.append(Row.again(requests[told["request"]], stopper, told, tokens[start:end]))
        start = end
    live = [lane.rows[at] for at in about["live"]]
    lane.free = sorted(set(range(lane.width)) - {row.slot for row in live})
    lane.scored = sum(not row.filler for row in live)
    return live


def put_rows(slots: Slots, seats: Sequence[int], live: Sequence[Row], state: LaneState) -> None:
    """Keys, values and states of the live rows into the slots `seats`."""
    put(slots, seats, [row.positions for row in live], state.parts)
