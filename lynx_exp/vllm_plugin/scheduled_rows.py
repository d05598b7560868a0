"""Who the token rows of a step are, from what vLLM's scheduler says of its requests. NumPy only.

N requests of the step, T its token rows, G lanes among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from lynx_exp.vllm_plugin.plugin_settings import VANILLA, Acting, Place

POSITIONS = 2**32
"""A row's number is its place in the lane times this, and for a token of a prompt its position on top."""
PREFILL_KEY = 2**31
"""The `step` of a lane's prefill in its random key; decode steps count from 0. Both as in `lynx_exp.engine`."""


@dataclass(kw_only=True, eq=False)
class Seat:
    """A request in the worker."""

    place: Place
    prompt: int
    """Tokens of its prompt."""
    done: int = 0
    """Positions that have been computed, whether or not they still are after a preemption."""


@dataclass(frozen=True, kw_only=True)
class LaneStep:
    """A lane's part of a step."""

    lane: int
    acting: Acting
    live_rows: int
    """Decode rows."""
    first: int
    last: int
    """Of its decode rows: how many tokens the youngest and the oldest request had before this one. Equal in a lane
    that decodes in step. -1 without decode rows."""
    repeated: int
    """Rows that were computed before, and lost to a preemption."""
    prompt_rows: int = 0
    """All others."""


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """All rows of one step that are no padding, in the order of the batch."""

    decode_T: np.ndarray
    """bool: fed a token that the request itself gave, for the first time."""
    place_T: np.ndarray
    """int64 in 0..G-1: of the row's lane."""
    row_T: np.ndarray
    """int64, as in `StepContext.row`."""
    key_G: np.ndarray
    """int64, as in `StepContext.key`."""
    lanes: Sequence[LaneStep]
    """By place."""

    def acting_T(self, acting: Acting) -> np.ndarray:
        """bool: the rows that `acting` decides for."""
        own_G = np.array([lane.acting == acting for lane in self.lanes])
        own_T = own_G[self.place_T]
        if acting.phases == "both":
            return own_T
        return own_T & (self.decode_T if acting.phases == "decode" else ~self.decode_T)


PlaceOf: TypeAlias = Callable[[object, int], Place]
"""Sampling parameters and running number of a request -> where it belongs."""


class Seats:
    """Requests that the worker holds, and how many steps each lane has made."""

    def __init__(self, place_of: PlaceOf) -> None:
        self._place_of = place_of
        self._seats: dict[str, Seat] = {}
        self._entered = 0
        self._steps: dict[int, int] = {}
        self._prefills: dict[int, int] = {}

    def update(self, new: Iterable[tuple[str, int, object]], gone: Iterable[str]) -> None:
        """Requests that come (id, tokens of the prompt, sampling parameters), and the ids of those that have left."""
        for name in gone:
            self._seats.pop(name, None)
        for name, prompt, params in new:
            known = self._seats.get(name)
            if known is not None:  # back after a preemption, which some model runners announce as new
                continue
            self._seats[name] = Seat(place=self._place_of(params, self._entered), prompt=prompt)
            self._entered += 1
        if not self._seats:
            self._steps.clear()
            self._prefills.clear()

    def step(self, names: Sequence[str], computed_N: Sequence[int], scheduled_N: Sequence[int]) -> StepRows:
        """The rows of a step: `scheduled_N` tokens of each request after `computed_N`."""
        seats = [self._seats[name] for name in names]
        scheduled = np.asarray(scheduled_N, np.int64)
        start = np.asarray(computed_N, np.int64)
        prompt = np.array([seat.prompt for seat in seats], np.int64)
        done = np.array([seat.done for seat in seats], np.int64)
        slot = np.array([seat.place.slot for seat in seats], np.int64)
        numbers, place = np.unique([seat.place.lane for seat in seats], return_inverse=True)

        first_T = np.repeat(np.cumsum(scheduled) - scheduled, scheduled)
        position_T = np.arange(len(first_T)) - first_T + np.repeat(start, scheduled)
        new_T = position_T >= np.repeat(done, scheduled)
        decode_T = (position_T >= np.repeat(prompt, scheduled)) & new_T
        row_T = np.repeat(slot, scheduled) * POSITIONS + np.where(decode_T, 0, position_T)
        place_T = np.repeat(place.astype(np.int64), scheduled)
        token_T = position_T - np.repeat(prompt, scheduled)

        lanes, keys = [], []
        for at, number in enumerate(numbers.tolist()):
            mine = place_T == at
            tokens = token_T[mine & decode_T]
            acts = {
                (seat.place.acting, seat.place.number) for seat, where in zip(seats, place, strict=True) if where == at
            }
            if len(acts) > 1:
                raise ValueError(f"lane {number}: its requests name several policies; a lane has one")
            acting, drawn = acts.pop()
            lanes.append(
                LaneStep(
                    lane=number,
                    acting=acting,
                    live_rows=len(tokens),
                    first=int(tokens.min()) if len(tokens) else -1,
                    last=int(tokens.max()) if len(tokens) else -1,
                    repeated=int((mine & ~new_T).sum()),
                    prompt_rows=int((mine & new_T & ~decode_T).sum()),
                )
            )
            keys.append(self._key(number, drawn, len(tokens) > 0))
        for seat, end in zip(seats, (start + scheduled).tolist(), strict=True):
            seat.done = max(seat.done, end)
        return StepRows(
            decode_T=decode_T, place_T=place_T, row_T=row_T, key_G=np.array(keys, np.int64), lanes=tuple(lanes)
        )

    def _key(self, lane: int, number: int, decodes: bool) -> int:
        counter, base = (self._steps, 0) if decodes else (self._prefills, PREFILL_KEY)
        counter[lane] = counter.get(lane, -1) + 1
        return (number << 32) + base + counter[lane]


def one_lane(acting: Acting) -> PlaceOf:
    """All requests in lane 0, as rows that a server decodes together."""
    return lambda _params, number: Place(lane=0, slot=number & (2**30 - 1), acting=acting, number=0)


def lanes_of_requests(known: dict[str, Acting]) -> PlaceOf:
    """Requests in the lanes that their `extra_args` name."""
    return lambda params, _number: Place.of(getattr(params, "extra_args", None), known)


NOBODY = StepRows(
    decode_T=np.zeros(0, bool),
    place_T=np.zeros(0, np.int64),
    row_T=np.zeros(0, np.int64),
    key_G=np.zeros(1, np.int64),
    lanes=(LaneStep(lane=0, acting=VANILLA, live_rows=0, first=-1, last=-1, repeated=0),),
)
"""A step of padding alone: warm-up, capture, and idle data-parallel ranks."""
