"""Decoding of many lanes at once: lanes of any policy and batch size enter the physical batch as rows become free,
and are handed over as they complete.

R rows in use, S slots, T rows of a step (R and dead ones), G lane places, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.decoder import Decoder
from lynx_exp.engine.decoding.entering import entering
from lynx_exp.engine.decoding.lane import Job, Lane, Row, lanes_of
from lynx_exp.engine.decoding.lane_state import Keeper, LaneState, go_on, put_rows, state_of
from lynx_exp.engine.decoding.prompts import PromptStore
from lynx_exp.engine.decoding.sections import Sections
from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.memory import slots_that_fit
from lynx_exp.engine.kv_cache.slots import Prefilled, Slots, round_up
from lynx_exp.engine.requests.argmax import most_likely
from lynx_exp.engine.requests.processing import processed
from lynx_exp.engine.requests.results import LaneResult
from lynx_exp.engine.requests.sampling import Draw
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.models import Router

OnStep = Callable[[int, int], None]
"""Called after each step with the tokens that it gave and the rows that are live."""

GATE_ROWS = 32
"""Of a step, a multiple where experts are exact and a layer has one output, such as the gate of a shared expert: on a
CPU a product with one column, and a sigmoid of few numbers, treat their last rows otherwise."""

AHEAD = 1024
"""Positions behind the longest prompt that slots hold from the beginning: most responses never need more."""

MakeDecoder = Callable[[PreTrainedModel, Slots, Cursor], Decoder]


class Stream:
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
        least_rows: int,
        on_step: OnStep,
        keeper: Keeper | None = None,
    ) -> None:
        """`stores`: of each job's prompts; `max_rows`: slots, unless a lane is wider; `budget`: bytes of their
        keys and values; `least_rows`: rows of a step at least, with dead ones (1: none). ValueError if a lane does
        not fit."""
        self._model, self._routers, self._stopper, self._keeper = model, routers, stopper, keeper
        self._jobs, self._least_rows, self._on_step = jobs, least_rows, on_step
        self._device = model.get_input_embeddings().weight.device
        gated = any(getattr(module, "out_features", None) == 1 for module in model.modules())
        # a gate with one output rounds its last rows otherwise (GATE_ROWS)
        self._block = GATE_ROWS if gated and least_rows > 1 else 1
        acts = list(dict.fromkeys(job.act for job in jobs))
        self._waiting = list(lanes_of(jobs, acts))[::-1]
        self._sections = Sections(routers, acts, self._device)
        self._stores = stores
        self._rows: list[tuple[Row, Lane]] = []
        self._draw: Draw | None = None
        """None: every row takes its most likely token."""
        self._processes = False
        """Whether any row's settings change its logits first."""
        self._lanes: list[Lane] = []
        self._history: list[Tensor] = []
        self._forgotten = 0
        """Steps at the beginning that are no longer in the history."""
        if self._waiting:
            self._make_slots(make_decoder, max_rows, budget)

    def _make_slots(self, make_decoder: MakeDecoder, max_rows: int, budget: int) -> None:
        all_requests = [
            self._jobs[lane.job].requests[number] for lane in self._waiting for number in (*lane.queue, *lane.fillers)
        ]
        capacity = round_up(max(len(request.prompt_ids) + request.max_new_tokens for request in all_requests))
        widths = [lane.width for lane in self._waiting]
        wanted = min(max(max_rows, max(widths)), sum(widths))
        # any prompt will do: it shows how large a row's keys and values are in this model
        like, _ = self._stores[self._waiting[-1].job].get(all_requests[-1].prompt_ids)
        self._most_rows = slots_that_fit(wanted, max(widths), like.row_bytes(capacity), budget)
        slots = self._rows_of_step(self._most_rows)
        # as many rows are let in as fit at their longest, so that none runs out of memory on its way; but positions
        # that no response has reached are not held
        prompts = max(len(request.prompt_ids) for request in all_requests)
        self._slots = Slots(like, slots, capacity, held=round_up(prompts + AHEAD))
        self._cursor = Cursor(torch.arange(slots, device=self._device), torch.zeros(0), 0)
        self._decoder = make_decoder(self._model, self._slots, self._cursor)
        self._position = np.zeros(slots, np.int64)
        self._key_G = np.zeros(self._most_rows, np.int64)
        self._free_places = list(range(self._most_rows))[::-1]

    @torch.inference_mode()  # a generator leaves the mode at each yield
    def run(self) -> Iterator[tuple[int, LaneResult]]:
        """(number of the job, lane) for each lane as it completes."""
        moved = True
        while self._waiting or self._lanes:
            entered = self._admit()
            yield from self._complete()
            if not self._rows:
                continue
            if moved or entered:
                self._arrange()
            self._step()
            moved = self._leave()
            yield from self._complete()
            if self._keeper is not None:
                self._keeper.between_steps(self._states)

    def _admit(self) -> bool:
        """Let requests in wherever there is room; whether any came."""
        loads: dict[int, tuple[Prefilled, list[int], list[int]]] = {}
        before = len(self._rows)
        for lane in self._lanes:
            if lane.free:
                self._enter(lane, loads)
        # a lane enters only if it could fill all its slots: otherwise its own batch would depend on who else is here
        reserved = sum(lane.reserved for lane in self._lanes)
        while self._waiting and self._free_places and reserved + self._waiting[-1].width <= self._most_rows:
            lane = self._waiting.pop()
            lane.place, lane.began = self._free_places.pop(), self._forgotten + len(self._history)
            # the upper half names the lane, the lower one counts its steps: random policies draw from it, so that their
            # draws do not depend on the packing
            self._key_G[lane.place] = lane.number << 32
            self._lanes.append(lane)
            state = None if self._keeper is None else self._keeper.found(lane.job, lane.number)
            if state is not None:
                self._go_on(lane, state)
            if lane.free:
                self._enter(lane, loads)
            reserved += lane.reserved
        for made, slots, rows in loads.values():
            self._slots.load(slots, made, rows)
        return len(self._rows) > before

    def _enter(self, lane: Lane, loads: dict[int, tuple[Prefilled, list[int], list[int]]]) -> None:
        """Fill the lane's free slots."""
        entered, store = 0, self._stores[lane.job]
        for row, made, at in entering(
            self._model, self._routers, self._stopper, self._jobs[lane.job], store, lane, self._device
        ):
            entered += 1
            if row.finish is not None:
                continue
            _, into, of = loads.setdefault(id(made), (made, [], []))
            into.append(len(self._rows))
            of.append(at)
            self._position[len(self._rows)] = made.lengths[at]
            self._rows.append((row, lane))
        self._on_step(entered, len(self._rows))

    def _go_on(self, lane: Lane, state: LaneState) -> None:
        """The lane has begun in an earlier run."""
        live = go_on(lane, state, self._jobs[lane.job].requests, self._stopper, self._device)
        lane.earlier = state.parts["counts"].make().to(self._device)
        self._key_G[lane.place] += len(lane.live_rows)
        seats = list(range(len(self._rows), len(self._rows) + len(live)))
        put_rows(self._slots, seats, live, state)
        self._position[seats] = [row.positions for row in live]
        self._rows += [(row, lane) for row in live]

    def _states(self) -> Iterator[tuple[int, LaneState]]:
        """(number of the job, state) of the lanes that are here."""
        for lane in self._lanes:
            mine = {at: row for at, (row, its) in enumerate(self._rows) if its is lane}
            yield lane.job, state_of(lane, [*mine.values()], [*mine], self._slots, self._counts(lane))

    def _arrange(self) -> None:
        rows = len(self._rows)
        self._sections.arrange(
            [lane.act for _, lane in self._rows],
            [lane.place for _, lane in self._rows],
            [row.slot for row, _ in self._rows],
            dead=self._rows_of_step(rows) - rows,
        )
        # rows lie one behind another at the front: only `_leave` makes holes, and fills them
        self._cursor.rows = torch.arange(self._rows_of_step(rows), device=self._device)
        self._draw = Draw.of([row.request.sampling for row, _ in self._rows])
        self._processes = any(row.request.processing for row, _ in self._rows)

    def _rows_of_step(self, rows: int) -> int:
        """With dead ones."""
        return -(-max(rows, self._least_rows) // self._block) * self._block

    def _step(self) -> None:
        """One token for every row."""
        rows, total = len(self._rows), self._cursor.rows.shape[0]
        # dead rows read and write one position of slots that nobody uses
        self._position[rows:total] = 0
        tokens = [row.tokens[-1] for row, _ in self._rows] + [0] * (total - rows)
        self._cursor.position = torch.from_numpy(self._position[:total].copy()).to(self._device)
        # attention reads no further than the longest row, in steps of a block
        self._cursor.width = round_up(int(self._position[:rows].max()) + 1)
        self._slots.hold(self._cursor.width)
        self._sections.begin(self._key_G)
        with self._sections:  # whoever holds the generator may use the model between two lanes
            logits = self._decoder.step(torch.tensor(tokens, device=self._device))
        self._history.append(self._sections.counts())
        for lane in self._lanes:
            lane.count()
        # dead rows are dropped before anything looks at logits
        logits = logits[:rows]
        if self._processes:
            requests, produced = [row.request for row, _ in self._rows], [row.tokens for row, _ in self._rows]
            logits = processed(requests, produced, logits, self._stopper.model_eos_ids)
        if self._draw is None:
            chosen = most_likely(logits)
        else:
            chosen = self._draw(logits, [len(self._rows[at][0].tokens) for at in self._draw.rows])
        for (row, _), token in zip(self._rows, chosen.tolist(), strict=True):
            row.take(token)
        self._position[:rows] += 1
        self._key_G += 1
        self._on_step(rows, rows)

    def _leave(self) -> bool:
        """Take finished rows out, the last ones moving into their places; whether there were any."""
        for at in self._gone():
            row, lane = self._rows[at]
            lane.leave(row)
        for lane in self._lanes:
            if lane.is_over:
                for row in lane.cut():
                    lane.leave(row)
        gone = self._gone()
        left = len(self._rows) - len(gone)
        # rows behind `left` that are not finished move into the holes before it, so that live rows stay contiguous
        holes = [at for at in gone if at < left]
        if holes:
            last = [at for at in range(left, len(self._rows)) if self._rows[at][0].finish is None]
            self._slots.move(last, holes, self._cursor.width)
            self._position[holes] = self._position[last]
            for hole, at in zip(holes, last, strict=True):
                self._rows[hole] = self._rows[at]
        del self._rows[left:]
        return bool(gone)

    def _gone(self) -> list[int]:
        return [at for at, (row, _) in enumerate(self._rows) if row.finish is not None]

    def _complete(self) -> list[tuple[int, LaneResult]]:
        """The lanes that have nothing left to do, taken out."""
        over = [lane for lane in self._lanes if lane.is_over]
        if not over:
            return []
        self._lanes = [lane for lane in self._lanes if not lane.is_over]
        self._free_places += [lane.place for lane in over]
        results = [(lane.job, self._result(lane)) for lane in over]
        # counts are kept from the first step that an open lane still needs
        oldest = min((lane.began for lane in self._lanes), default=self._forgotten + len(self._history))
        del self._history[: oldest - self._forgotten]
        self._forgotten = oldest
        return results

    def _result(self, lane: Lane) -> LaneResult:
        active, changed = self._counts(lane).unbind(1)
        return lane.result(active.tolist(), changed.tolist())

    def _counts(self, lane: Lane) -> Tensor:
        """`[steps, 2, L]` of the lane's steps."""
        earlier = 0 if lane.earlier is None else len(lane.earlier)
        start = lane.began - self._forgotten
        own = [counts[:, lane.place] for counts in self._history[start : start + len(lane.live_rows) - earlier]]
        none = torch.zeros(0, 2, len(self._routers), dtype=torch.long, device=self._device)
        before = none if lane.earlier is None else lane.earlier
        return torch.cat([before, torch.stack(own)]) if own else before
