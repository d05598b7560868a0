"""plan.json, as types: checked by `forms.PLAN` when it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict


class PlanEntry(TypedDict):
    """The lanes of one subtask."""

    lanes: Sequence[Sequence[int]]
    """Numbers of its requests, lane by lane."""
    digest: str
    batch_size: int
    batching: str
    seed: int
    tail: NotRequired[str]
    plan_seed: NotRequired[int]
    fillers: NotRequired[Sequence[Sequence[int]]]
    """Of each lane."""


Plan = Mapping[str, PlanEntry]
"""By subtask."""
