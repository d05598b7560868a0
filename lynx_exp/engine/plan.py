"""Requests, and who shares a lane with whom. A plan is data: stored with the results, and part of their identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random


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

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError("prompt_ids: empty; a request needs at least one prompt token")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")


@dataclass(frozen=True)
class BatchPlan:
    """Lanes of request numbers. The requests of a lane decode together and see only one another in the policy."""

    lanes: tuple[tuple[int, ...], ...]

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

    def digest(self) -> str:
        """SHA-256 of the plan."""
        return hashlib.sha256(json.dumps(self.lanes).encode()).hexdigest()

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
