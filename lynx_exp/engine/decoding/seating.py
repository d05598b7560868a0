"""Who sits where while recorded steps are replayed: lanes take seats and places, requests enter their lane's slots and
leave them, and what the buffers of the step do not know yet is told when it is asked for.

S seats, G lane places, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.entering import entering
from lynx_exp.engine.decoding.lane import Job, Lane, Row
from lynx_exp.engine.decoding.lane_state import Keeper, LaneState, go_on, put_rows, state_of
from lynx_exp.engine.decoding.prompts import PromptStore
from lynx_exp.engine.kv_cache.batch import POSITIONS
from lynx_exp.engine.kv_cache.memory import slots_that_fit
from lynx_exp.engine.kv_cache.slots import Prefilled, Slots
from lynx_exp.engine.requests.results import LaneResult
from lynx_exp.engine.requests.sampling import Sampling
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.models import Router

_DEAD = [0] * 6
"""An empty seat in the table of seats."""


@dataclass(eq=False)
class OpenLane:
    """A lane that is being decoded."""

    lane: Lane
    seats: list[int]
    """Of each of its slots; -1: given back."""
    live: dict[int, tuple[Row, int]] = field(default_factory=dict)
    """By slot: a row, and the positions of its prompt."""
    since: int = 0
    """The first launch with the rows that it has now."""
    steps: list[np.ndarray] = field(default_factory=list)
    """`[2, L]` each, active experts and assignments changed."""

    def result(self) -> LaneResult:
        active, changed = np.stack(self.steps, 1).tolist() if self.steps else ([], [])
        return self.lane.result(active, changed)


class Changes(NamedTuple):
    """What the buffers of a step are to be told."""

    columns: dict[int, list[int]]
    """By seat: its column of the table."""
    keys: dict[int, int]
    """By lane place: the number of its (lane, step)."""
    samplings: dict[int, Sampling | None]
    """By seat."""


class Seating:
    """`admit` and `leave` change who is there; `changes` is what has changed since it was last asked for."""

    def __init__(
        self,
        model: PreTrainedModel,
        routers: Sequence[Router],
        stopper: Stopper,
        jobs: Sequence[Job],
        stores: Sequence[PromptStore],
        waiting: list[Lane],
        slots: Slots,
        seats: int,
        keeper: Keeper | None = None,
    ) -> None:
        """`waiting`: the lanes, the first to enter last; `slots`: where their rows' keys and values go, one a seat."""
        self._model, self._routers, self._stopper, self._keeper = model, routers, stopper, keeper
        self._jobs, self._stores, self.waiting, self._slots = jobs, stores, waiting, slots
        self._device = model.get_input_embeddings().weight.device
        self.open: list[OpenLane] = []
        self.launches = 0
        """The number of the next launch."""
        self.entered = 0
        """Requests that have entered."""
        self.acts = self._acts()
        """Numbers of those that still have lanes."""
        self._changed: list[OpenLane] = []
        self._emptied: list[int] = []
        widths = sorted(lane.width for lane in waiting)
        # as many lanes as fit whole, and as many again, of which rows have left for good
        self.places = min(len(widths), 2 * sum(total <= seats for total in accumulate(widths)))
        self._free_seats, self._free_places = list(range(seats))[::-1], list(range(self.places))[::-1]

    @property
    def rows(self) -> int:
        """Live ones."""
        return sum(len(each.live) for each in self.open)

    def _acts(self) -> tuple[int, ...]:
        return tuple(sorted({lane.act for lane in (*self.waiting, *(each.lane for each in self.open))}))

    def live(self) -> Iterator[tuple[OpenLane, Row, int]]:
        """(lane, row, positions of its prompt) of each live row."""
        for each in self.open:
            for row, prompt in each.live.values():
                yield each, row, prompt

    def admit(self) -> bool:
        """Let requests in wherever there is room; whether any came to stay."""
        loads: dict[int, tuple[Prefilled, list[int], list[int]]] = {}
        gone_on = False
        for each in self.open:
            if each.lane.free:
                self._enter(each, loads)
        while self.waiting and self._free_places and self.waiting[-1].width <= len(self._free_seats):
            lane = self.waiting.pop()
            lane.place = self._free_places.pop()
            each = OpenLane(lane, [self._free_seats.pop() for _ in range(lane.width)])
            self.open.append(each)
            state = None if self._keeper is None else self._keeper.found(lane.job, lane.number)
            if state is not None:
                self._go_on(each, state)
                gone_on = True
            if lane.free:
                self._enter(each, loads)
        for made, seats, rows in loads.values():
            self._slots.load(seats, made, rows)
        return bool(loads) or gone_on

    def _go_on(self, each: OpenLane, state: LaneState) -> None:
        """The lane has begun in an earlier run."""
        lane = each.lane
        live = go_on(lane, state, self._jobs[lane.job].requests, self._stopper, self._device)
        each.steps = list(state.parts["counts"].make().numpy())
        each.live = {row.slot: (row, len(row.request.prompt_ids)) for row in live}
        put_rows(self._slots, [each.seats[row.slot] for row in live], live, state)
        self._renew(each)

    def states(self) -> Iterator[tuple[int, LaneState]]:
        """(number of the job, state) of the open lanes, as far as their steps have been read. Keys and values of a
        launch that has not been lie behind what is taken."""
        for each in self.open:
            live = [row for row, _ in each.live.values()]
            none = np.zeros((0, 2, len(self._routers)), np.int64)
            counts = torch.from_numpy(np.stack(each.steps) if each.steps else none)
            seats = [each.seats[row.slot] for row in live]
            yield each.lane.job, state_of(each.lane, live, seats, self._slots, counts)

    def _enter(self, each: OpenLane, loads: dict[int, tuple[Prefilled, list[int], list[int]]]) -> None:
        """Fill the lane's free slots."""
        lane, before, store = each.lane, self.entered, self._stores[each.lane.job]
        for row, made, at in entering(
            self._model, self._routers, self._stopper, self._jobs[lane.job], store, lane, self._device
        ):
            self.entered += 1
            if row.finish is None:
                _, into, of = loads.setdefault(id(made), (made, [], []))
                into.append(each.seats[row.slot])
                of.append(at)
                each.live[row.slot] = row, made.lengths[at]
        if self.entered > before:
            self._renew(each)

    def leave(self, each: OpenLane) -> None:
        """Take the lane's finished rows out; with its last request its fillers end."""
        gone = [row for row, _ in each.live.values() if row.finish is not None]
        for row in gone:
            each.lane.leave(row)
        if each.lane.is_over:
            cut = each.lane.cut()
            for row in cut:
                each.lane.leave(row)
            gone += cut
        for row in gone:
            del each.live[row.slot]
        if gone:
            self._renew(each)

    def _renew(self, each: OpenLane) -> None:
        """The lane's rows are others from the next launch on."""
        each.since = self.launches
        if each not in self._changed:
            self._changed.append(each)
        if not each.lane.queue and not each.lane.fillers:  # its free slots stay free
            for slot in each.lane.free:
                self._give_back(each, slot)

    def _give_back(self, each: OpenLane, slot: int) -> None:
        if each.seats[slot] >= 0:
            self._emptied.append(each.seats[slot])
            self._free_seats.append(each.seats[slot])
            each.seats[slot] = -1

    def complete(self) -> list[tuple[int, LaneResult]]:
        """(number of the job, result) of the lanes that have nothing left to do, taken out."""
        over = [each for each in self.open if each.lane.is_over]
        if over:
            self.open = [each for each in self.open if not each.lane.is_over]
            self._changed = [each for each in self._changed if not each.lane.is_over]
            self.acts = self._acts()
        for each in over:
            for slot in range(len(each.seats)):
                self._give_back(each, slot)
            self._free_places.append(each.lane.place)
        return [(each.lane.job, each.result()) for each in over]

    def changes(self) -> Changes:
        found = Changes({seat: _DEAD for seat in self._emptied}, {}, {})
        for each in self._changed:
            lane = each.lane
            found.keys[lane.place] = (lane.number << 32) + len(lane.live_rows)
            found.columns.update((seat, _DEAD) for seat in each.seats if seat >= 0)
            for slot, (row, prompt) in each.live.items():
                position, seat = prompt + len(row.tokens) - 1, each.seats[slot]
                found.columns[seat] = [row.tokens[-1], position, 1, lane.place, lane.act, slot * POSITIONS]
                found.samplings[seat] = row.request.sampling
        self._changed, self._emptied = [], []
        return found


def seats_that_fit(max_rows: int, widest: int, row_bytes: int, budget: int) -> int:
    """A power of two, so that settings that are near have the same steps: for `max_rows`, or as many as fit; more only
    for a lane that is wider. ValueError if that does not fit."""
    wanted = 1 << (max(max_rows, widest) - 1).bit_length()
    fit = slots_that_fit(wanted, widest, row_bytes, budget)
    below = 1 << (fit.bit_length() - 1)
    return below if below >= widest else fit
