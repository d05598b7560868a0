"""When each token of given continuations is decoded, and beside whom: known beforehand, since lengths are.

A lane with slots is refilled here as it is when it decodes: its queue enters free slots in order, then fillers do,
until the last of its own requests has ended. Fillers bring the continuations that they are given, cut where the lane
ends; those without any were not decoded by whoever made the continuations, and do not enter.

R rows, T tokens of the longest continuation, G lanes, S decode steps of the longest lane.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

import torch
from torch import Tensor

from lynx_exp.engine.kv_cache.batch import POSITIONS, PREFILL_KEY, lane_keys
from lynx_exp.engine.requests.plan import BatchPlan, Request
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

    rounds: list[int]
    """Counting over all lanes: the entering in which the row came, whose prompts are one prefill."""
    fillers: list[bool]

    @classmethod
    def of(cls, requests: Sequence[Request], plan: BatchPlan, lanes: Sequence[int]) -> ForcedPlan:
        made = cls(
            lanes=tuple(lanes), numbers=[], lane_indices=[], slots=[], starts=[], lengths=[], rounds=[], fillers=[]
        )
        first = 0
        for index, lane in enumerate(lanes):
            queue = plan.lanes[lane]
            extra = [number for number in plan.fillers_of(lane) if requests[number].continuation_ids]
            own, more = ([len(requests[number].continuation_ids) for number in part] for part in (queue, extra))
            seats = seat(own, more, plan.slots)
            for at, (number, each) in enumerate(zip((*queue, *extra), seats, strict=False)):
                made.numbers.append(number)
                made.lane_indices.append(index)
                made.slots.append(each.slot)
                made.starts.append(each.start)
                made.lengths.append(each.length)
                made.rounds.append(first + each.round)
                made.fillers.append(at >= len(queue))
            first += 1 + max(each.round for each in seats)
        return made

    @property
    def num_rounds(self) -> int:
        """Prefills of all lanes."""
        return 1 + max(self.rounds)

    @property
    def num_steps(self) -> int:
        """Decode steps of the longest lane; the last token of a continuation is scored but never fed."""
        return max(start + length - 1 for start, length in zip(self.starts, self.lengths, strict=True))

    def rows_of(self, index: int) -> list[int]:
        """The rows of the lane with this index."""
        return [row for row, lane in enumerate(self.lane_indices) if lane == index]

    def live_rows(self, index: int, *, fillers: bool = True) -> list[int]:
        """Of the lane with this index, for each of its decode steps; with its fillers, or without."""
        rows = [row for row in self.rows_of(index) if fillers or not self.fillers[row]]
        spans = [(self.starts[row], self.starts[row] + self.lengths[row] - 1) for row in rows]
        return [sum(start <= step < stop for start, stop in spans) for step in range(max(stop for _, stop in spans))]

    def lane(self, device: torch.device) -> Tensor:
        """`[R]`: index of each row's lane."""
        return torch.tensor(self.lane_indices, device=device)

    def round(self, device: torch.device) -> Tensor:
        """`[R]`: the entering in which each row came."""
        return torch.tensor(self.rounds, device=device)

    def prefill_keys(self, device: torch.device) -> Tensor:
        """`[P]`: the random key of each entering's prefill: its lane's, and its number in the lane."""
        lane_of = dict(zip(self.rounds, self.lane_indices, strict=True))
        firsts = {lane: number for number, lane in sorted(lane_of.items(), reverse=True)}
        lanes = [self.lanes[lane_of[number]] for number in range(self.num_rounds)]
        in_lane = [number - firsts[lane_of[number]] for number in range(self.num_rounds)]
        return lane_keys(lanes, device) + PREFILL_KEY + torch.tensor(in_lane, device=device)

    def row(self, device: torch.device) -> Tensor:
        """`[R]`: number of each row in its lane."""
        return torch.tensor(self.slots, device=device) * POSITIONS

    def rows(self, mask_RT: Tensor) -> Rows:
        """The fed tokens `[R, T-1]`: those of one lane and step are a batch of their own, numbered lane * S + step."""
        device, steps = mask_RT.device, self.num_steps
        live_RT = mask_RT[:, 1:]
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


class Seat(NamedTuple):
    """Of a request in a lane."""

    start: int
    """The lane's step in which its first token is fed."""
    slot: int
    length: int
    """Tokens of it that the lane has: all, but of a filler that the lane's end cuts."""
    round: int
    """Of the lane's enterings, the one in which it came."""


def seat(own: Sequence[int], fillers: Sequence[int], slots: int | None) -> list[Seat]:
    """Seats of a lane's requests, then of the fillers that enter, from the lengths of their responses: whenever slots
    are free, the next of the queue enter them, lowest slot first; a response of one token needs no step and leaves at
    once. Behind the queue fillers do likewise, as long as one of the queue's requests is live."""
    most = len(own) + len(fillers)
    free, busy = list(range(min(slots or most, most))), list[tuple[int, int]]()  # busy: (free before step, slot)
    seats: list[Seat] = []
    step = rounds = end = 0  # end: before which step the last of the queue leaves
    while len(seats) < most:
        waiting = own[len(seats) :] or (fillers[len(seats) - len(own) :] if step < end else [])
        if not waiting:
            break
        if free:
            entering, taken = waiting[: len(free)], free[: len(waiting)]
            free = free[len(taken) :]
            for length, slot in zip(entering, taken, strict=False):
                is_own = len(seats) < len(own)
                seats.append(Seat(step, slot, length if is_own else min(length, end - step + 1), rounds))
                end = max(end, step + length - 1) if is_own else end
                if length == 1:
                    insort(free, slot)
                else:
                    heappush(busy, (step + length - 1, slot))
            rounds += 1
            continue
        step = busy[0][0]
        while busy and busy[0][0] == step:
            insort(free, heappop(busy)[1])
    return seats
