"""What a policy reads and returns.

T token rows of one forward pass, E experts, K top-k, G lanes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """Where one layer sends the token rows of one forward pass."""

    logits: Tensor
    """`[T, E]` fp32 router logits, before any policy."""
    experts: Tensor
    """`[T, K]` int64, best first. A slot that runs nothing repeats the row's first expert with weight 0."""
    weights: Tensor
    """`[T, K]` combine weights."""

    _scores: dict[RouterRule, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def scores(self, rule: RouterRule) -> Tensor:
        """`[T, E]` fp32 scores of all experts, computed once."""
        if rule not in self._scores:
            self._scores[rule] = rule.scores(self.logits)
        return self._scores[rule]

    @property
    def num_experts(self) -> int:
        return self.logits.shape[-1]

    @property
    def top_k(self) -> int:
        return self.experts.shape[-1]


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Who the token rows are. A batch-aware policy sees only the live rows of a row's own lane."""

    layer: int
    decode: Tensor
    """`[T]` bool: True for decode rows, False for prefill rows."""
    lane: Tensor
    """`[T]` int64 in 0..num_lanes-1."""
    live: Tensor
    """`[T]` bool: False for padding and finished rows, which neither vote nor change."""
    num_lanes: int
    key: Tensor
    """`[G]` int64: a number of its own for every (lane, step), the same however lanes are packed. All randomness
    derives from it."""
    shared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What layers of one forward pass may share: facts of the rows, computed once. Belongs to `live` and `lane`."""


@dataclass(frozen=True, kw_only=True)
class RouterRule:
    """How a model turns logits into combine weights, so that a policy can do the same for other experts."""

    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalize: bool = True
    """True: the K weights sum to 1. False: they are the raw scores."""

    def scores(self, logits_TE: Tensor) -> Tensor:
        """`[T, E]` fp32 scores of all experts."""
        logits_TE = logits_TE.float()
        return torch.softmax(logits_TE, -1) if self.score == "softmax" else torch.sigmoid(logits_TE)
