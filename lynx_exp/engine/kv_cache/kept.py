"""Rows of slots taken out, and put back elsewhere bit for bit: the positions that they have reached, and their states.

n rows, H key-value heads, D head size, N positions of all n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lynx_exp.engine.kv_cache.slots import Slots


class Part(NamedTuple):
    """A tensor that is on the host only while somebody has it: all of a lane's may be more than fit there."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Part:
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor.cpu())

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


Parts = Mapping[str, Part]


def take(slots: Slots, rows: Sequence[int], positions: Sequence[int]) -> Iterator[tuple[str, Part]]:
    """Keys and values `[H, N, D]` of each layer, one row's `positions` after another's, and states `[n, ...]`."""
    for name, buffer in _buffers(slots):
        shape = buffer.shape[1], sum(positions), buffer.shape[3]
        yield name, Part(buffer.dtype, shape, partial(_joined, buffer, rows, positions))
    for name, state in _states(slots):
        yield name, Part(state.dtype, (len(rows), *state.shape[1:]), partial(_chosen, state, rows))


def put(slots: Slots, rows: Sequence[int], positions: Sequence[int], parts: Parts) -> None:
    """What was taken, into rows of other slots of the same model."""
    slots.hold(max(positions, default=0))
    ends = [0, *accumulate(positions)]
    for name, buffer in _buffers(slots):
        made = parts[name].make()
        for row, (start, end) in zip(rows, pairwise(ends), strict=True):
            buffer[row, :, : end - start] = made[:, start:end].to(buffer.device)
    for name, state in _states(slots):
        made = parts[name].make()
        for at, row in enumerate(rows):
            state[row] = made[at].to(state.device)


def _buffers(slots: Slots) -> Iterator[tuple[str, Tensor]]:
    for kind, buffers in (("keys", slots.keys), ("values", slots.values)):
        yield from ((f"{kind}.{layer}", buffer) for layer, buffer in enumerate(buffers))


def _states(slots: Slots) -> Iterator[tuple[str, Tensor]]:
    for (layer, kind, number), state in slots.states.items():
        yield f"state.{layer}.{kind}.{number}", state


def _joined(buffer: Tensor, rows: Sequence[int], positions: Sequence[int]) -> Tensor:
    # row by row to the host: a GPU that is full of keys and values has no room for a copy of them
    none = buffer[0, :, :0].cpu()
    return torch.cat([none, *(buffer[row, :, :end].cpu() for row, end in zip(rows, positions, strict=True))], 1)


def _chosen(state: Tensor, rows: Sequence[int]) -> Tensor:
    return torch.stack([state[row].cpu() for row in rows]) if rows else state[:0].cpu()
