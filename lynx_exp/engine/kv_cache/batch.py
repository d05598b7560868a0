"""One physical batch: left-padded prompts of several lanes, their key-value cache, and single forward steps.

R rows, N positions of the padded prompts, G lanes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.kv_cache.kv import new_cache, rewind, select_rows
from lynx_exp.models import Rows

PREFILL_KEY = 2**31
"""The `step` of a lane's prefill in its random key; decode steps count from 0."""


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids `[R, N]` int64, real `[R, N]` bool)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths[:, None]


def lane_keys(lanes: Sequence[int], device: torch.device) -> Tensor:
    """`[G]` int64: the base of each lane's random key; add the step."""
    return torch.tensor(lanes, device=device).long() << 32


POSITIONS = 2**32
"""A row's number is its place in the lane times this, and for a token of a prompt its position on top."""


def row_numbers(lane_of_row: Sequence[int], device: torch.device) -> Tensor:
    """`[R]` int64: each row's number, from its place among the rows of its lane."""
    seen: dict[int, int] = {}
    places = []
    for lane in lane_of_row:
        places.append(seen.get(lane, 0))
        seen[lane] = places[-1] + 1
    return torch.tensor(places, device=device) * POSITIONS


def prompt_rows(real_RN: Tensor, row_R: Tensor) -> Tensor:
    """`[R, N]` int64: the numbers of the token rows of left-padded prompts."""
    return row_R[:, None] + (real_RN.long().cumsum(-1) - 1).clamp_min(0)


class Batch:
    """Rows that go through the model together. `prefill` once, then `step` until nothing is live."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        lane_of_row: Sequence[int],
        lanes: Sequence[int],
        room: int,
    ) -> None:
        """`lane_of_row`: for each row the index into `lanes`, the plan's numbers of the lanes here; `room`: decode
        steps at most."""
        device = model.get_input_embeddings().weight.device
        self.model = model
        self.prompt_ids, real_RN = left_pad(prompts, device)
        self.width = self.prompt_ids.shape[1]
        self.padded = not bool(real_RN.all())
        self.lane = torch.tensor(lane_of_row, device=device)
        self.num_lanes = len(lanes)
        self._key_G = lane_keys(lanes, device)
        self._row_R = row_numbers(lane_of_row, device)
        self.position = real_RN.sum(-1)  # of the next token
        self.cache, self.slots = new_cache(model.config, self.width + room)
        self.seen = torch.ones(len(prompts), self.width + room, dtype=torch.bool, device=device)
        self.seen[:, : self.width] = real_RN
        self.steps = 0
        self._four_d = self.slots and model.config._attn_implementation == "sdpa"
        self._decode_R = torch.ones(len(prompts), dtype=torch.bool, device=device)

    @property
    def num_rows(self) -> int:
        return self.lane.shape[0]

    def prefill_rows(self) -> Rows:
        """Who the `R * N` token rows of the prefill are."""
        real_T = self.seen[:, : self.width].flatten()
        lane_T = self.lane.repeat_interleave(self.width)
        key_G = self._key_G + PREFILL_KEY
        return Rows(
            decode=torch.zeros_like(real_T),
            lane=lane_T,
            live=real_T,
            num_lanes=self.num_lanes,
            key=key_G,
            row=prompt_rows(self.seen[:, : self.width], self._row_R).flatten(),
            phase="prefill",
        )

    def prefill(self) -> Tensor:
        """`[R, V]` logits of the token after each prompt."""
        real_RN = self.seen[:, : self.width]
        return self.model(
            input_ids=self.prompt_ids,
            attention_mask=real_RN.long() if self.padded else None,
            position_ids=(real_RN.long().cumsum(-1) - 1).clamp_min(0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def step_rows(self, live_R: Tensor) -> Rows:
        """Who the R token rows of the next decode step are."""
        key_G = self._key_G + self.steps
        return Rows(
            decode=self._decode_R,
            lane=self.lane,
            live=live_R,
            num_lanes=self.num_lanes,
            key=key_G,
            row=self._row_R,
            phase="decode",
        )

    def step(self, token_R: Tensor) -> Tensor:
        """Feed one token a row; `[R, V]` logits of the next."""
        width = self.width + self.steps + 1
        mask = self.seen[:, :width] if self.padded else None
        if mask is not None:
            mask = mask[:, None, None] if self._four_d else mask.long()
        logits = self.model(
            input_ids=token_R[:, None],
            attention_mask=mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.position = self.position + 1
        self.steps += 1
        return logits

    def rewind(self) -> None:
        """Back to right after the prefill. Slots only."""
        assert self.slots
        rewind(self.cache, self.width)
        self.position = self.position - self.steps
        self.steps = 0

    def select(self, rows: Tensor) -> None:
        """Keep only `rows`; their lanes keep their numbers."""
        select_rows(self.cache, rows)
        self.lane, self.position, self.seen = self.lane[rows], self.position[rows], self.seen[rows]
        self._decode_R, self._row_R = self._decode_R[rows], self._row_R[rows]
