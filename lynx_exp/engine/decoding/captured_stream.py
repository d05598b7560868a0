"""A stream whose steps are recorded once and replayed: a fixed number of seats, some of them dead; requests enter and
leave between replays; tokens are read while the next step runs, where that pays (`lead`).

Each lane does the steps that it does in a plain `Stream`, with the same rows in each. A replay that was on its way when
one of a lane's requests turned out to have ended counts for nothing in that lane, and is done again: keys and values of
a position are written anew before they are read.

S seats, G lane places, L layers, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.graph import Capture, Made, Step, recorded
from lynx_exp.engine.decoding.lane import Job, Lane, lanes_of
from lynx_exp.engine.decoding.lane_state import Keeper
from lynx_exp.engine.decoding.lead import LaunchAhead
from lynx_exp.engine.decoding.masked_sections import MaskedSections
from lynx_exp.engine.decoding.prompts import PromptStore
from lynx_exp.engine.decoding.seat_draw import SeatDraw
from lynx_exp.engine.decoding.seating import OpenLane, Seating, seats_that_fit
from lynx_exp.engine.decoding.stream import MakeDecoder, OnStep
from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.seats import POSITION, TOKEN, Readback, Seats
from lynx_exp.engine.kv_cache.slots import Slots, round_up
from lynx_exp.engine.requests.argmax import most_likely
from lynx_exp.engine.requests.results import LaneResult
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.models import Router
from lynx_exp.models.experts import using_experts

LEAST_WIDTH = 128
"""Columns that attention reads: this many at least, and then one of a few numbers, so that few steps are recorded."""


class CapturedStream:
    """One decoding of jobs; `run` it once. What it says of a request depends on the request's own lane alone."""

    def __init__(
        self,
        model: PreTrainedModel,
        routers: Sequence[Router],
        make_decoder: MakeDecoder,
        stopper: Stopper,
        jobs: Sequence[Job],
        stores: Sequence[PromptStore],
        *,
        max_rows: int,
        budget: int,
        on_step: OnStep,
        capture: Capture,
        lead: LaunchAhead,
        experts: Callable[[int], str | None],
        keeper: Keeper | None = None,
    ) -> None:
        """As `Stream`; `capture`: records steps; `experts`: from a step's rows to how it computes experts (None: as the
        model does). CannotRecord, while it runs, if it cannot."""
        self._model, self._routers, self._on_step, self._capture, self._lead = model, routers, on_step, capture, lead
        self._keeper = keeper
        self._acts = list(dict.fromkeys(job.act for job in jobs))
        self._flights: deque[tuple[int, Readback]] = deque()
        """(number, what it made) of launches that have not been read."""
        self._replays: dict[int, Step] = {}
        """By width."""
        self._recorded_for: tuple[int, ...] = ()
        """Numbers of the acts that the recorded steps know."""
        self.seats = 0
        """Rows of every step, dead ones included."""
        # reversed: lanes are popped off the end, and the first is to enter first
        waiting = list(lanes_of(jobs, self._acts))[::-1]
        if not waiting:
            return
        all_requests = [jobs[lane.job].requests[number] for lane in waiting for number in (*lane.queue, *lane.fillers)]
        # one capacity for every seat: a recorded step has fixed addresses, whoever sits there
        self._capacity = round_up(max(len(request.prompt_ids) + request.max_new_tokens for request in all_requests))
        like, _ = stores[waiting[-1].job].get(all_requests[-1].prompt_ids)
        widest = max(lane.width for lane in waiting)
        self.seats = seats_that_fit(max_rows, widest, like.row_bytes(self._capacity), budget)
        self.experts = experts(self.seats)
        slots = Slots(like, self.seats, self._capacity)
        self._seating = Seating(model, routers, stopper, jobs, stores, waiting, slots, self.seats, keeper)
        # the step reads its inputs from these buffers; a replay sees what has been written into them since
        device = model.get_input_embeddings().weight.device
        self._buffers = Seats(self.seats, self._seating.places, device)
        self._cursor = Cursor(self._buffers.every_S, self._buffers.every_S, 0)
        self._decoder = make_decoder(model, slots, self._cursor)
        # None where all requests are greedy: their steps then have no sampling in them
        self._draw = SeatDraw.of(self.seats, [request.sampling for request in all_requests], device)

    @torch.inference_mode()  # a generator leaves the mode at each yield
    def run(self) -> Iterator[tuple[int, LaneResult]]:
        """(number of the job, lane) for each lane as it completes."""
        if not self.seats:
            return
        seating = self._seating
        while seating.waiting or seating.open:
            # requests that end with their first token enter and leave here without ever taking a seat
            before = seating.entered
            if seating.admit():
                self._lead.interrupted()
            if seating.entered > before:
                self._on_step(seating.entered - before, seating.rows)
            yield from seating.complete()
            if not seating.rows:
                self._flights.clear()  # in vain, all of them
                continue
            self._launch()
            # the reading of the last launch may be put off until the next one runs, but no further
            while len(self._flights) > self._ahead():
                self._read()
            yield from seating.complete()
            if self._keeper is not None and self._keeper.between_steps(seating.states):
                self._lead.interrupted()

    def _launch(self) -> None:
        """One token for every live row."""
        columns, keys, samplings = self._seating.changes()
        if columns:
            self._buffers.write(columns)
        if keys:
            self._buffers.write_keys(keys)
        if self._draw is not None:
            if samplings:
                self._draw.write(samplings)
            self._send_noise(self._draw)
        # launches that are not read have made tokens that the rows do not show yet
        furthest = max(prompt + len(row.tokens) for _, row, prompt in self._seating.live()) + len(self._flights)
        chosen_S, counts, following = self._replay(width_of(furthest, self._capacity))
        self._flights.append((self._seating.launches, Readback(chosen_S, counts)))
        # the next step's tokens and positions come from this one on the device: the host is not waited for
        self._buffers.advance(following)
        self._seating.launches += 1
        self._lead.launched()

    def _send_noise(self, draw: SeatDraw) -> None:
        drawing = [
            (each.seats[row.slot], row.request.sampling, len(row.tokens) + self._unread_launches(each))
            for each, row, _ in self._seating.live()
            if row.request.sampling is not None
        ]
        if drawing:
            draw.send(*zip(*drawing, strict=True))

    def _unread_launches(self, each: OpenLane) -> int:
        """Launches that count for the lane and have not been read."""
        return sum(number >= each.since for number, _ in self._flights)

    def _replay(self, width: int) -> Made:
        present = self._seating.acts
        if present != self._recorded_for:  # whoever is done for good costs nothing from here on
            self._replays, self._recorded_for = {}, present
        if width not in self._replays:
            sections = MaskedSections(self._routers, {number: self._acts[number] for number in present}, self._buffers)
            self._lead.interrupted()
            with using_experts(self._model, self.experts):
                self._replays[width] = recorded(self._capture, lambda: self._step(sections, width))
        return self._replays[width]()

    def _step(self, sections: MaskedSections, width: int) -> Made:
        """(`[S]` tokens chosen, counts `[2, G, L]`, what the next step is fed)."""
        buffers = self._buffers
        self._cursor.position, self._cursor.width = buffers.table[POSITION], width
        sections.begin()
        with sections:
            logits_SV = self._decoder.step(buffers.table[TOKEN])
        chosen_S: Tensor = most_likely(logits_SV) if self._draw is None else self._draw(logits_SV)
        return chosen_S, sections.counts(), buffers.following(chosen_S)

    def _ahead(self) -> int:
        """Launches that may be on their way unread."""
        # the host knows these ends without reading: max_new_tokens is reached by counting
        will_end = any(
            len(row.tokens) + self._unread_launches(each) >= row.request.max_new_tokens
            for each, row, _ in self._seating.live()
        )
        return int(self._lead.pays_off([len(each.live) for each in self._seating.open], will_end))

    def _read(self) -> None:
        """Take the tokens of the oldest launch; who ends with them leaves."""
        number, made = self._flights.popleft()
        chosen_S, counts = made.read()
        rows = ends = 0
        for each in self._seating.open:
            # its rows changed after this launch, whose step was in vain here and is done again
            if number < each.since or not each.live:
                continue
            lane: Lane = each.lane
            lane.count()
            each.steps.append(counts[:, lane.place].copy())
            # after the counts: a row that ends with this token still took part in the step
            for row, _ in each.live.values():
                row.take(int(chosen_S[each.seats[row.slot]]))
            rows += len(each.live)
            ends += sum(row.finish in ("eos", "stop") for row, _ in each.live.values())
            self._seating.leave(each)
        self._lead.read(rows, ends)
        self._on_step(rows, rows)


def width_of(positions: int, capacity: int) -> int:
    """Columns for so many positions: a power of two or one and a half times that, or all there are."""
    power = 1 << (max(positions, LEAST_WIDTH) - 1).bit_length()
    return min(power * 3 // 4 if positions <= power * 3 // 4 >= LEAST_WIDTH else power, capacity)
