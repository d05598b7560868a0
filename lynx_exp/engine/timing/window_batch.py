"""The rows of a window in key-value slots: before each step those that are live are in place, and one token is fed.

Prompts and tokens so far go through the model in one prefill, without a policy: what a policy's own steps would have
left in keys and values differs in their last digits, which no time depends on.

R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.graph import Graphs
from lynx_exp.engine.decoding.prompts import PromptStore, pads_left
from lynx_exp.engine.decoding.stream import MakeDecoder
from lynx_exp.engine.kv_cache.batch import POSITIONS
from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.slots import Prefilled, Slots, round_up
from lynx_exp.engine.timing.windows import Window
from lynx_exp.models import Rows


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What one step of the window feeds; everything is made before the clock runs."""

    token_R: Tensor
    position_R: Tensor
    slot_R: Tensor
    lane_key: int
    width: int
    rows: Rows


class WindowBatch:
    """`enter` a window, then, as often as is wanted, for each of its steps `seat` (not to be timed) and `step`."""

    def __init__(
        self, model: PreTrainedModel, make_decoder: MakeDecoder, most_rows: int, positions: int, store_bytes: int
    ) -> None:
        """`most_rows`, `positions`: of any window that will enter; `store_bytes`: for prefilled rows."""
        self._model, self._make_decoder, self._most_rows = model, make_decoder, most_rows
        self._capacity = round_up(positions)
        self._store_bytes = store_bytes
        self.device = model.get_input_embeddings().weight.device
        self._arange = torch.arange(most_rows, device=self.device)
        self._ones = torch.ones(most_rows, dtype=torch.bool, device=self.device)
        self._zeros = torch.zeros_like(self._arange)  # like the two above, kept: graphs read them where they lie
        self._cursor = Cursor(self._arange, self._arange, 0)
        self._slots: Slots | None = None
        self._keeps_states = pads_left(model)
        """Which go on with each step: a window is begun again from those before it."""

    def enter(self, window: Window) -> None:
        """Prefill its rows."""
        # a recurrent state cannot be rewound to a position: it is made for the first one, keys and values for all
        contexts = window.before if self._keeps_states else window.contexts
        store = PromptStore(self._model, contexts, self._store_bytes)
        self._places = [store.get(context) for context in contexts]
        if self._slots is None:
            self._slots = Slots(self._places[0][0], self._most_rows, self._capacity)
            self._decoder = self._make_decoder(self._model, self._slots, self._cursor)
        self._seated: list[int] | None = None
        self.window = window
        self._steps = [self._step_of(number) for number in range(len(window.steps))]

    def _step_of(self, number: int) -> _Step:
        window, seats = self.window, self.window.steps[number]
        ones = self._ones[: len(seats)]
        slot_R = torch.tensor([seat.slot for seat in seats], device=self.device) * POSITIONS
        # the key that the run gave this lane's step, so that random policies draw as they did
        key = (window.lane << 32) + window.start + number
        return _Step(
            token_R=torch.tensor(window.tokens(number), device=self.device),
            position_R=torch.tensor([seat.position for seat in seats], device=self.device),
            slot_R=slot_R,
            lane_key=key,
            width=round_up(max(seat.position for seat in seats) + 1),
            rows=Rows(
                decode=ones,
                lane=self._zeros[: len(seats)],
                live=ones,
                num_lanes=1,
                key=torch.tensor([key], device=self.device),
                row=slot_R,
                phase="decode",
            ),
        )

    def seat(self, number: int) -> Rows:
        """Put those who are live in the window's step of this number in place; who they are."""
        assert self._slots is not None
        wanted = [seat.row for seat in self.window.steps[number]]
        if wanted != self._seated or (self._keeps_states and number == 0):
            stay: set[int] = set()
            if self._keeps_states and number > 0 and self._seated is not None:
                stay = set(self._seated).intersection(wanted)
                sources = [self._seated.index(row) for row in wanted if row in stay]
                targets = [at for at, row in enumerate(wanted) if row in stay]
                # states have gone on since they were loaded: who stays takes its own along
                self._slots.move(sources, targets, self._capacity)
            # one copy for all rows that were prefilled together
            loads: dict[int, tuple[Prefilled, list[int], list[int]]] = {}
            for at, row in enumerate(wanted):
                if row in stay:
                    continue
                prefilled, of = self._places[row]
                _, into, rows = loads.setdefault(id(prefilled), (prefilled, [], []))
                into.append(at)
                rows.append(of)
            for prefilled, into, rows in loads.values():
                self._slots.load(into, prefilled, rows)
            self._seated = wanted
        self._cursor.rows = self._arange[: len(wanted)]
        return self._steps[number].rows

    def step(self, number: int) -> Tensor:
        """`[R, V]` logits after the tokens of the window's step of this number."""
        made = self._steps[number]
        self._cursor.position, self._cursor.width = made.position_R, made.width
        return self._decoder.step(made.token_R)

    def graphed_step(self, number: int, graphs: Graphs, announce: Callable[[Rows], None]) -> Tensor:
        """`step`, captured when a width comes for the first time and replayed from then on. `announce` tells a policy
        who the rows are, in the graphs' buffers; it is called while capturing."""
        made = self._steps[number]
        rows = Rows(
            decode=made.rows.decode,
            lane=made.rows.lane,
            live=made.rows.live,
            num_lanes=1,
            key=graphs.key_G,
            row=graphs.row_R,
            phase="decode",
        )

        def step() -> Tensor:
            self._cursor.position, self._cursor.width = graphs.position_R, made.width
            announce(rows)
            return self._decoder.step(graphs.token_R)

        graphs.row_R.copy_(made.slot_R)
        return graphs.run(made.token_R, made.position_R, made.lane_key, made.width, step)
