"""Rows that keep their places while a recorded step is replayed: what it reads of them, where they lie, and what it
makes, on the way to the host.

S seats: rows of the physical batch, of which some are dead. G lane places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

TOKEN, POSITION, LIVE, PLACE, ACT, NUMBER = range(6)
"""Lines of the table of seats: what is fed next and where; whether the row is live; the place of its lane; who decides
there; the row's own number in its lane."""


class Seats:
    """The buffers. `write` changes some seats between replays, `advance` takes over what a replay made."""

    def __init__(self, seats: int, places: int, device: torch.device) -> None:
        self.device = device
        self.table = torch.zeros(6, seats, dtype=torch.long, device=device)
        self.key_G = torch.zeros(places, dtype=torch.long, device=device)
        """For each lane place the number of its (lane, step)."""
        self.every_S = torch.arange(seats, device=device)

    def write(self, columns: Mapping[int, Sequence[int]]) -> None:
        """By seat: its column of the table."""
        at, made = np.array([*columns], np.int64), np.array([*columns.values()], np.int64).T
        self.table.index_copy_(1, to_device(at, self.device), to_device(made, self.device))

    def write_keys(self, keys: Mapping[int, int]) -> None:
        """By lane place."""
        at, made = np.array([*keys], np.int64), np.array([*keys.values()], np.int64)
        self.key_G.index_copy_(0, to_device(at, self.device), to_device(made, self.device))

    def following(self, chosen_S: Tensor) -> Tensor:
        """`[2, S]`: tokens and positions of the next step, if nobody comes or goes. What is no token is fed as 0: the
        host will see it."""
        live_S = self.table[LIVE]
        token_S = torch.where(live_S > 0, chosen_S.clamp_min(0), self.table[TOKEN])
        return torch.stack([token_S, self.table[POSITION] + live_S])

    def advance(self, following: Tensor) -> None:
        self.table[: POSITION + 1].copy_(following)
        self.key_G.add_(1)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy there, for which neither the host nor the device waits."""
    made = torch.from_numpy(np.ascontiguousarray(array))
    # pinned memory goes back to torch, which keeps it until the copy is done
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


class Readback:
    """Copies of what a replay made, on their way to the host: later replays do not change them."""

    def __init__(self, *made: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if not made[0].is_cuda:
            self._held = [tensor.clone() for tensor in made]
            return
        self._held = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in made]
        for held, tensor in zip(self._held, made, strict=True):
            held.copy_(tensor, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def read(self) -> list[np.ndarray]:
        """Waits until they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [held.numpy() for held in self._held]
