"""When each token of given continuations is decoded, and beside whom: known beforehand, since lengths are.

R rows, T tokens of the longest continuation, G lanes, S decode steps of the longest lane.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from torch import Tensor

from lynx_exp.engine.batch import POSITIONS, lane_keys
from lynx_exp.engine.plan import BatchPlan, Request
from lynx_exp.models import Rows


@dataclass(frozen=True, kw_only=True)
class ForcedPlan:
    """The rows of some lanes, in the order of their queues."""

    lanes: tuple[int, ...]
    numbers: list[int]
    """Of each row's request."""
    lane_indices: list[int]
    """Into `lanes`."""
    slots: list[int]
    """Of the lane, in which the row decodes."""
    starts: list[int]
    """The lane's step in which the row's first continuation token is fed."""
    lengths: list[int]
    """Continuation tokens."""

    @classmethod
    def of(cls, requests: Sequence[Request], plan: BatchPlan, lanes: Sequence[int]) -> ForcedPlan:
        numbers, indices, slots, starts, lengths = [], [], [], [], []
        for index, lane in enumerate(lanes):
            queue = plan.lanes[lane]
            tokens = [len(requests[number].continuation_ids) for number in queue]
            for number, length, (start, slot) in zip(queue, tokens, _seat(tokens, plan.slots), strict=True):
                numbers.append(number)
                indices.append(index)
                slots.append(slot)
                starts.append(start)
                lengths.append(length)
        return cls(
            lanes=tuple(lanes), numbers=numbers, lane_indices=indices, slots=slots, starts=starts, lengths=lengths
        )

    @property
    def num_steps(self) -> int:
        """Decode steps of the longest lane; the last token of a continuation is scored but never fed."""
        return max(start + length - 1 for start, length in zip(self.starts, self.lengths, strict=True))

    def rows_of(self, index: int) -> list[int]:
        """The rows of the lane with this index."""
        return [row for row, lane in enumerate(self.lane_indices) if lane == index]

    def live_rows(self, index: int) -> list[int]:
        """Of the lane with this index, for each of its decode steps."""
        spans = [(self.starts[row], self.starts[row] + self.lengths[row] - 1) for row in self.rows_of(index)]
        return [sum(start <= step < stop for start, stop in spans) for step in range(max(stop for _, stop in spans))]

    def lane(self, device: torch.device) -> Tensor:
        """`[R]`: index of each row's lane."""
        return torch.tensor(self.lane_indices, device=device)

    def row(self, device: torch.device) -> Tensor:
        """`[R]`: number of each row in its lane."""
        return torch.tensor(self.slots, device=device) * POSITIONS

    def rows(self, given_RT: Tensor) -> Rows:
        """The fed tokens `[R, T-1]`: those of one lane and step are a batch of their own, numbered lane * S + step."""
        device, steps = given_RT.device, self.num_steps
        live_RT = given_RT[:, 1:]
        step_RT = torch.tensor(self.starts, device=device)[:, None] + torch.arange(live_RT.shape[1], device=device)
        lane_RT = self.lane(device)[:, None] * steps + step_RT.clamp_max(max(steps - 1, 0))
        key_G = lane_keys(self.lanes, device)[:, None] + torch.arange(steps, device=device)
        return Rows(
            decode=torch.ones_like(live_RT),
            lane=lane_RT,
            live=live_RT,
            num_lanes=len(self.lanes) * steps,
            key=key_G.flatten(),
            row=self.row(device)[:, None].expand_as(live_RT),
        )


def _seat(lengths: Sequence[int], slots: int | None) -> list[tuple[int, int]]:
    """(first step, slot) of each request of a lane: whenever slots are free, the next of the queue enter them, lowest
    slot first; a continuation of one token needs no step and leaves at once."""
    width = min(slots or len(lengths), len(lengths))
    free, busy = list(range(width)), list[tuple[int, int]]()  # busy: (step before which it is free, slot)
    seats: list[tuple[int, int]] = []
    step = 0
    while len(seats) < len(lengths):
        while free and len(seats) < len(lengths):
            entering = lengths[len(seats) : len(seats) + len(free)]
            taken, free = free[: len(entering)], free[len(entering) :]
            for length, slot in zip(entering, taken, strict=True):
                seats.append((step, slot))
                if length == 1:
                    insort(free, slot)
                else:
                    heappush(busy, (step + length - 1, slot))
        if busy:
            step = busy[0][0]
            while busy and busy[0][0] == step:
                insort(free, heappop(busy)[1])
    return seats
