"""The rows of a step where the policy reads them: tensors that stay where they are, so that a replayed CUDA graph
reads the step that is being made and not the one that it was captured in.

T token rows (with padding, if there is any), G lanes, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lynx_exp.routing import StepContext
from lynx_exp.vllm_plugin.plugin_settings import Acting
from lynx_exp.vllm_plugin.scheduled_rows import StepRows


@dataclass(kw_only=True, eq=False)
class Part:
    """The rows that one act decides for."""

    acting: Acting
    live_T: Tensor
    shared: dict[str, object]
    """`StepContext.shared` of this step."""


class Buffers:
    """Filled in place before each step (`fill`); `step` is then what a policy is called with."""

    def __init__(
        self, max_rows: int, max_lanes: int, acts: int, num_layers: int, num_experts: int, device: torch.device
    ) -> None:
        """`acts`: policies that act in one step at most."""
        self._device, self._num_experts = device, num_experts
        self.rows = 0
        """Rows of this step that are no padding."""
        self.lanes = 1
        """Lanes of this step."""
        self.parts: list[Part] = []
        self._decode_T = torch.zeros(max_rows, dtype=torch.bool, device=device)
        self._padding_T = torch.ones(max_rows, dtype=torch.bool, device=device)
        self._lane_T = torch.zeros(max_rows, dtype=torch.long, device=device)
        self._row_T = torch.zeros(max_rows, dtype=torch.long, device=device)
        self._count_T = torch.full((max_rows,), max_lanes * num_experts, dtype=torch.long, device=device)
        """Where the counts of the row's lane begin; behind all lanes for rows that decode nothing."""
        self._live_AT = torch.zeros(acts, max_rows, dtype=torch.bool, device=device)
        self._key_G = torch.zeros(max_lanes, dtype=torch.long, device=device)
        self._changed_T = torch.full((max_rows,), 2 * max_lanes, dtype=torch.long, device=device)
        """Where the row's assignments count: its lane, behind all lanes for rows that decode nothing; padding last."""
        self.counts_4LG = torch.zeros(4, num_layers, max_lanes, dtype=torch.int32, device=device)
        """Of each lane in each layer: distinct experts that its decode rows run, of the router's choice and of the
        policy's; assignments that the policy changed, of its decode rows and of the others."""

    @property
    def max_rows(self) -> int:
        return len(self._decode_T)

    @property
    def max_lanes(self) -> int:
        return len(self._key_G)

    def fill(self, rows: StepRows, acts: list[Acting]) -> None:
        """Who the rows of the next step are, and who decides for them."""
        count, lanes = len(rows.decode_T), len(rows.key_G)
        if count > self.max_rows or lanes > self.max_lanes or len(acts) > len(self._live_AT):
            raise RuntimeError(
                f"{count} rows, {lanes} lanes, {len(acts)} policies in a step; this engine was made for "
                f"{self.max_rows}, {self.max_lanes}, {len(self._live_AT)}"
            )
        was, self.rows, self.lanes = self.rows, count, lanes
        self._put(self._decode_T, rows.decode_T, was)
        self._put(self._lane_T, rows.place_T, was)
        self._put(self._row_T, rows.row_T, was)
        nowhere = self.max_lanes * self._num_experts
        counted_T = np.where(rows.decode_T, rows.place_T * self._num_experts, nowhere)
        self._put(self._count_T, counted_T, was, nowhere)
        changed_T = rows.place_T + np.where(rows.decode_T, 0, self.max_lanes)
        self._put(self._changed_T, changed_T, was, 2 * self.max_lanes)
        self._padding_T[:count].fill_(False)
        self._padding_T[count:].fill_(True)
        self._key_G[:lanes].copy_(self._from(rows.key_G), non_blocking=True)
        self.parts = []
        for at, acting in enumerate(acts):
            self._put(self._live_AT[at], rows.acting_T(acting), was)
            self.parts.append(Part(acting=acting, live_T=self._live_AT[at], shared={}))

    def _put(self, buffer: Tensor, values: np.ndarray, was: int, nothing: int = 0) -> None:
        """`values` at the beginning, `nothing` where the last step had more."""
        buffer[: len(values)].copy_(self._from(values), non_blocking=True)
        if was > len(values):
            buffer[len(values) : was].fill_(nothing)

    def _from(self, values: np.ndarray) -> Tensor:
        made = torch.from_numpy(np.ascontiguousarray(values))
        return made.pin_memory() if self._device.type == "cuda" else made

    def step(self, part: Part, layer: int, size: int) -> StepContext:
        """What the policy of `part` is told of `size` rows, the padding included."""
        return StepContext(
            layer=layer,
            decode=self._decode_T[:size],
            lane=self._lane_T[:size],
            live=part.live_T[:size],
            num_lanes=self.lanes,
            key=self._key_G[: self.lanes],
            row=self._row_T[:size],
            shared=part.shared,
        )

    def padding(self, size: int) -> Tensor:
        """bool `[T]`"""
        return self._padding_T[:size]

    def count(self, layer: int, before_TK: Tensor, after_TW: Tensor) -> None:
        """Fill in `counts_4LG` of a layer, without waiting for the device. A slot that runs nothing repeats its row's
        first expert."""
        start_T1 = self._count_T[: len(before_TK), None]
        room = (self.max_lanes + 1) * self._num_experts
        slots = [(start_T1 + before_TK).flatten()]
        if after_TW is not before_TK:
            slots.append((start_T1 + (after_TW + room)).flatten())
        hit = torch.zeros(len(slots) * room, dtype=torch.int32, device=self._device)
        hit.scatter_(0, slots[0] if len(slots) == 1 else torch.cat(slots), 1)
        counts = hit.view(len(slots), self.max_lanes + 1, self._num_experts).sum(-1)
        self.counts_4LG[:2, layer] = counts[:, : self.max_lanes]
        if after_TW is before_TK:
            self.counts_4LG[2:, layer] = 0
            return
        gone_T = (before_TK[:, :, None] != after_TW[:, None, :]).all(-1).sum(-1, dtype=torch.int32)
        changed = torch.zeros(2 * self.max_lanes + 1, dtype=torch.int32, device=self._device)
        changed.index_add_(0, self._changed_T[: len(gone_T)], gone_T)
        self.counts_4LG[2:, layer] = changed[:-1].view(2, self.max_lanes)
