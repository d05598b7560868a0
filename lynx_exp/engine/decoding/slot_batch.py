"""One lane in slots, on its own and for a fixed number of steps: what `measure` times. The methods are `Batch`'s.

R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.decoder import Decoder
from lynx_exp.engine.decoding.graph import Graphs
from lynx_exp.engine.decoding.prompts import pads_left, prefill, prompt_rows_of
from lynx_exp.engine.kv_cache.batch import POSITIONS, PREFILL_KEY
from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.slots import Slots, round_up
from lynx_exp.models import Rows


class SlotBatch:
    """`prefill` once, then `step`, and `rewind` to do it again."""

    slots = True
    """Its cache can be rewound."""

    def __init__(
        self,
        model: PreTrainedModel,
        make_decoder: Callable[[PreTrainedModel, Slots, Cursor], Decoder],
        prompts: Sequence[Sequence[int]],
        room: int,
    ) -> None:
        """`room`: decode steps at most."""
        self._model, self._make_decoder = model, make_decoder
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._capacity = round_up(max(map(len, self._prompts)) + room)
        self._device = model.get_input_embeddings().weight.device
        rows = len(self._prompts)
        self.num_rows = rows
        self.lane = torch.zeros(rows, dtype=torch.long, device=self._device)
        self._decode_R = torch.ones(rows, dtype=torch.bool, device=self._device)
        self._row_R = torch.arange(rows, device=self._device) * POSITIONS
        self._start_R = torch.tensor([len(prompt) for prompt in self._prompts], device=self._device)
        self._cursor = Cursor(torch.arange(rows, device=self._device), self._start_R, 0)
        self._steps = 0

    def prefill_rows(self) -> Rows:
        """Who the token rows of the prefill are."""
        left = pads_left(self._model)
        return prompt_rows_of(self._prompts, range(self.num_rows), PREFILL_KEY, self._device, left=left)

    def prefill(self) -> Tensor:
        """`[R, V]` logits of the token after each prompt."""
        made = prefill(self._model, self._prompts)
        slots = Slots(made, self.num_rows, self._capacity)
        slots.load(list(range(self.num_rows)), made, list(range(self.num_rows)))
        self._states = slots.states
        self._before = made.states  # of the same rows; keys and values need no copy, later ones are not looked at
        self._decoder = self._make_decoder(self._model, slots, self._cursor)
        return made.logits

    def step_rows(self, live_R: Tensor) -> Rows:
        """Who the R token rows of the next decode step are."""
        return Rows(
            decode=self._decode_R,
            lane=self.lane,
            live=live_R,
            num_lanes=1,
            key=torch.tensor([self._steps], device=self._device),
            row=self._row_R,
            phase="decode",
        )

    def step(self, token_R: Tensor) -> Tensor:
        """Feed one token a row; `[R, V]` logits of the next."""
        self._cursor.position, self._cursor.width = self._start_R + self._steps, self._width
        self._steps += 1
        return self._decoder.step(token_R)

    def graphed_step(self, token_R: Tensor, graphs: Graphs, announce: Callable[[], None]) -> Tensor:
        """`step`, captured when a width comes for the first time and replayed from then on. `announce` tells a policy
        who the rows are; it is called while capturing."""
        width = self._width

        def step() -> Tensor:
            self._cursor.position, self._cursor.width = graphs.position_R, width
            announce()
            return self._decoder.step(graphs.token_R)

        logits = graphs.run(token_R, self._start_R + self._steps, self._steps, width, step)
        self._steps += 1
        return logits

    @property
    def _width(self) -> int:
        return round_up(max(map(len, self._prompts)) + self._steps + 1)

    def rewind(self) -> None:
        """Back to right after the prefill."""
        self._steps = 0
        for place, state in self._states.items():
            state.copy_(self._before[place])
