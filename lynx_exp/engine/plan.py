"""Requests, and who shares a lane with whom. A plan is data: stored with the results, and part of their identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from lynx_exp.engine.sampling import Sampling

Setting = tuple[str, Any]
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
    """What changes logits before a token is chosen (`lynx_exp.engine.processing`)."""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("prompt_ids: empty; a request needs at least one prompt token")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")


def check_lengths(requests: Sequence[Request], limit: int | None, *, feeds_last: bool = True) -> None:
    """ValueError for the first request that needs more than `limit` positions (None: there is no limit). Not
    `feeds_last`: the last token of a continuation that is scored needs none."""
    for number, request in enumerate(requests):
        scored = len(request.continuation_ids) - (0 if feeds_last else 1)
        length = len(request.prompt_ids) + (scored if request.continuation_ids else request.max_new_tokens)
        if limit is not None and length > limit:
            raise ValueError(f"request {number}: prompt and response need {length} positions; the model has {limit}")


@dataclass(frozen=True)
class BatchPlan:
    """Lanes of request numbers. The requests of a lane decode together and see only one another in the policy."""

    lanes: tuple[tuple[int, ...], ...]
    slots: int | None = None
    """Continuous batching: requests of a lane that decode at once; the others wait in order. None: all do."""

    @classmethod
    def in_order(cls, num_requests: int, batch_size: int) -> BatchPlan:
        """Lanes of `batch_size` requests as they come; the last lane may be smaller."""
        return cls._cut(list(range(num_requests)), batch_size)

    @classmethod
    def _cut(cls, order: Sequence[int], batch_size: int) -> BatchPlan:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        return cls(tuple(tuple(order[i : i + batch_size]) for i in range(0, len(order), batch_size)))

    @classmethod
    def static(
        cls, num_requests: int, batch_size: int, seed: int = 0, groups: Sequence[int] | None = None
    ) -> BatchPlan:
        """Lanes of `batch_size` requests in an order shuffled by `seed`; the last lane may be smaller.

        Requests of one group (say, the choices of one question), which must be consecutive, stay consecutive.
        """
        members: dict[int, list[int]] = {}
        for request in range(num_requests):
            members.setdefault(groups[request] if groups is not None else request, []).append(request)
        order = list(members.values())
        Random(seed).shuffle(order)
        return cls._cut([request for group in order for request in group], batch_size)

    @classmethod
    def continuous(
        cls, num_requests: int, batch_size: int, seed: int = 0, groups: Sequence[int] | None = None, waves: int = 4
    ) -> BatchPlan:
        """Lanes of `batch_size` slots with a queue of `waves` times as many requests, in the order of `static`."""
        if waves < 1:
            raise ValueError(f"waves={waves}: must be at least 1")
        lanes = cls.static(num_requests, batch_size * waves, seed, groups).lanes
        return cls(lanes, slots=batch_size)

    @property
    def widest(self) -> int:
        """Rows that decode at once in the largest lane."""
        longest = max(map(len, self.lanes), default=0)
        return min(longest, self.slots or longest)

    def digest(self) -> str:
        """SHA-256 of the plan."""
        whole = self.lanes if self.slots is None else [self.lanes, self.slots]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def packs(self, lanes: Iterable[int], max_rows: int) -> Iterator[list[int]]:
        """`lanes` in order, grouped so that a group holds at most `max_rows` rows (a larger lane stands alone)."""
        pack: list[int] = []
        for lane in lanes:
            if pack and sum(len(self.lanes[i]) for i in [*pack, lane]) > max_rows:
                yield pack
                pack = []
            pack.append(lane)
        if pack:
            yield pack
