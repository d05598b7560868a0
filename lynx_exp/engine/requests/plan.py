"""Requests, and who shares a lane with whom. A plan is data: stored with the results, and part of their identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from random import Random

from lynx_exp.engine.requests.sampling import Sampling
from lynx_exp.engine.requests.thoughts import ThinkEnd

Setting = tuple[str, Hashable]
"""Name and value, lists as tuples."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue, or one given continuation to score."""

    prompt_ids: tuple[int, ...]
    """Token ids, special tokens included."""
    max_new_tokens: int = 1
    stop: tuple[str, ...] = ()
    """Strings that end the response; they are cut off."""
    ignore_eos: bool = False
    """True: EOS is a token like any other, so that lengths are fixed (for latency work)."""
    continuation_ids: tuple[int, ...] = ()
    """For scoring: the tokens whose log-likelihood is asked."""
    sampling: Sampling | None = None
    """How tokens are drawn; None: each is the most likely one. Scoring draws none."""
    processing: tuple[Setting, ...] = ()
    """What changes logits before a token is chosen (`lynx_exp.engine.requests.processing`)."""
    think_end: ThinkEnd | None = None
    """What ends a thought: the response's text is what follows it, and stop strings do not count before it. None: no
    thoughts are looked for."""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("prompt_ids: empty; a request needs at least one prompt token")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")


def check_lengths(requests: Sequence[Request], limit: int | None, *, feeds_last_token: bool = True) -> None:
    """ValueError for the first request that needs more than `limit` positions (None: there is no limit). Not
    `feeds_last_token`: the last token of a continuation that is scored needs none."""
    for number, request in enumerate(requests):
        scored = len(request.continuation_ids) - (0 if feeds_last_token else 1)
        length = len(request.prompt_ids) + (scored if request.continuation_ids else request.max_new_tokens)
        if limit is not None and length > limit:
            raise ValueError(f"request {number}: prompt and response need {length} positions; the model has {limit}")


FILLERS = 8
"""Fillers that a lane may draw on, in batch sizes: enough while its last request runs eight mean lengths longer."""


@dataclass(frozen=True)
class BatchPlan:
    """Lanes of request numbers. The requests of a lane decode together and see only one another in the policy."""

    lanes: tuple[tuple[int, ...], ...]
    slots: int | None = None
    """Continuous batching: requests of a lane that decode at once; the others wait in order. None: all do."""
    fillers: tuple[tuple[int, ...], ...] = ()
    """Of each lane, the requests that enter its free slots once its own queue is empty, in order, until the last of its
    own has ended: they keep the lane full, and are no part of what it answers. Empty: lanes drain."""

    @classmethod
    def in_order(cls, num_requests: int, batch_size: int) -> BatchPlan:
        """Lanes of `batch_size` requests as they come; the last lane may be smaller."""
        return cls(_cut(list(range(num_requests)), batch_size))

    @classmethod
    def static(
        cls, num_requests: int, batch_size: int, seed: int = 0, groups: Sequence[int] | None = None
    ) -> BatchPlan:
        """Lanes of `batch_size` requests in an order shuffled by `seed`; the last lane may be smaller.

        Requests of one group (say, the choices of one question), which must be consecutive, stay consecutive.
        """
        return cls(_cut(together(num_requests, seed, groups), batch_size))

    @classmethod
    def spread(
        cls, num_requests: int, batch_size: int, seed: int = 0, groups: Sequence[int] | None = None
    ) -> BatchPlan:
        """As `static`, with the requests of one group in different lanes, as far apart as there is room."""
        return cls(_cut(spread_groups(num_requests, seed, groups), batch_size))

    @classmethod
    def continuous(
        cls, num_requests: int, batch_size: int, seed: int = 0, groups: Sequence[int] | None = None, waves: int = 4
    ) -> BatchPlan:
        """Lanes of `batch_size` slots with a queue of `waves` times as many requests, in the order of `spread`; where
        that does not come out even, shorter queues of about equal length."""
        if waves < 1:
            raise ValueError(f"waves={waves}: must be at least 1")
        return cls.queues(spread_groups(num_requests, seed, groups), batch_size, waves)

    @classmethod
    def queues(cls, order: Sequence[int], batch_size: int, waves: int) -> BatchPlan:
        """Lanes of `batch_size` slots over `order`, as few as queues of `waves` batch sizes allow."""
        _check_batch_size(batch_size)
        number = -(-len(order) // (batch_size * waves))
        ends = [len(order) * lane // number for lane in range(number + 1)] if number else [0]
        return cls(tuple(tuple(order[a:b]) for a, b in pairwise(ends)), slots=batch_size)

    def filled(self, pool: Sequence[int], groups: Sequence[int], seed: int = 0) -> BatchPlan:
        """This plan with fillers for each of its lanes: of `pool`, requests that no lane has, from a place in it that
        follows from `seed` and the lane; then of the lanes after it. Never two of one group (`groups`: of every
        request), nor one of a group that the lane has. Only for lanes with slots."""
        assert self.slots is not None
        wanted, at = FILLERS * self.slots, Random(seed).randrange(len(pool)) if pool else 0
        starts = [sum(map(len, self.lanes[:lane])) for lane in range(len(self.lanes))]
        order = [number for lane in self.lanes for number in lane]
        found = []
        for lane, (start, own) in enumerate(zip(starts, self.lanes, strict=True)):
            first = (at + 2 * self.slots * lane) % len(pool) if pool else 0
            candidates = chain(pool[first:], pool[:first], order[start + len(own) :], order[:start])
            taken, chosen = {groups[number] for number in own}, list[int]()
            for number in candidates:
                if len(chosen) == wanted:
                    break
                if groups[number] not in taken:
                    taken.add(groups[number])
                    chosen.append(number)
            found.append(tuple(chosen))
        return replace(self, fillers=tuple(found))

    def fillers_of(self, lane: int) -> tuple[int, ...]:
        return self.fillers[lane] if self.fillers else ()

    def width(self, lane: int) -> int:
        """Rows of the lane that decode at once."""
        most = len(self.lanes[lane]) + len(self.fillers_of(lane))
        return min(self.slots or most, most)

    @property
    def widest(self) -> int:
        """Rows that decode at once in the largest lane."""
        return max(map(self.width, range(len(self.lanes))), default=0)

    def digest(self) -> str:
        """SHA-256 of the plan."""
        whole = self.lanes if self.slots is None else [self.lanes, self.slots, self.fillers]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def packs(self, lanes: Iterable[int], max_rows: int) -> Iterator[list[int]]:
        """`lanes` in order, grouped so that a group holds at most `max_rows` rows (a larger lane stands alone). Of a
        lane's fillers as many are counted as it has slots."""
        extra = (self.slots or 0) if self.fillers else 0
        pack: list[int] = []
        for lane in lanes:
            if pack and sum(len(self.lanes[i]) + extra for i in [*pack, lane]) > max_rows:
                yield pack
                pack = []
            pack.append(lane)
        if pack:
            yield pack


def together(num_requests: int, seed: int, groups: Sequence[int] | None) -> list[int]:
    """Requests shuffled by `seed`, those of one group (which are consecutive) side by side. None: each is its own."""
    order = _members(num_requests, groups)
    Random(seed).shuffle(order)
    return [request for group in order for request in group]


def spread_groups(num_requests: int, seed: int, groups: Sequence[int] | None) -> list[int]:
    """Requests shuffled by `seed`, those of one group at equal distances over the whole order: of c, about 1/c of it
    lies between one and the next. Without groups the order of `together`."""
    order = _members(num_requests, groups)
    Random(seed).shuffle(order)
    number = max(len(order), 1)
    placed = [((at + rank / number) / len(group), rank, request)
              for rank, group in enumerate(order) for at, request in enumerate(group)]  # fmt: skip
    return [request for _, _, request in sorted(placed)]


def _members(num_requests: int, groups: Sequence[int] | None) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for request in range(num_requests):
        members.setdefault(groups[request] if groups is not None else request, []).append(request)
    return list(members.values())


def _cut(order: Sequence[int], batch_size: int) -> tuple[tuple[int, ...], ...]:
    _check_batch_size(batch_size)
    return tuple(tuple(order[i : i + batch_size]) for i in range(0, len(order), batch_size))


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
