"""What a policy reads and returns.

T token rows of one forward pass, E experts, K top-k, G lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from torch import Tensor

from lynx_exp.routing.rule import RouterRule

Phase = Literal["decode", "prefill"]
Phases = Literal["decode", "prefill", "both", "none"]


@dataclass(frozen=True, init=False)
class Routing:
    """Where one layer sends the token rows of one forward pass.

    `choice`, `mass` and `affinity` are three views of one order: how much the router wants each expert for each token,
    as it ranks, as a share, and in units of logits. What a rule computes from the logits is computed once.
    """

    logits: Tensor
    """`[T, E]` fp32 router logits, before any policy."""
    experts: Tensor
    """`[T, K]` int64, best first. A slot that runs nothing repeats the row's first expert with weight 0."""
    weights: Tensor
    """`[T, K]` combine weights."""

    def __init__(self, logits: Tensor, experts: Tensor, weights: Tensor) -> None:
        """Made twice in every layer, and the `__init__` of a frozen dataclass takes twice as long."""
        vars(self).update(logits=logits, experts=experts, weights=weights)

    def scores(self, rule: RouterRule) -> Tensor:
        """Scores of all experts, from which combine weights are made.

        Args:
            rule: How this router scores.

        Returns:
            `[T, E]` fp32.
        """
        return self._once("scores", rule, lambda: rule.scores(self.logits))

    def choice(self, rule: RouterRule) -> Tensor:
        """What the router ranks experts by.

        Args:
            rule: How this router scores.

        Returns:
            `[T, E]`; -inf for experts outside the token's groups.
        """
        return self._once("choice", rule, lambda: rule.choice(self.logits, self.scores(rule)))

    def mass(self, rule: RouterRule) -> Tensor:
        """The scores with the router's bias, as shares.

        Args:
            rule: How this router scores.

        Returns:
            `[T, E]`, at least 0, in the order of `choice`.
        """
        return self._once("mass", rule, lambda: rule.mass(self.logits, self.scores(rule), self.choice(rule)))

    def affinity(self, rule: RouterRule) -> Tensor:
        """The logits with the router's bias.

        Args:
            rule: How this router scores.

        Returns:
            `[T, E]`, in units of logits, in the order of `choice`.
        """
        return self._once("affinity", rule, lambda: rule.affinity(self.logits, self.mass(rule), self.choice(rule)))

    def confidence(self, rule: RouterRule) -> Tensor:
        """How sure the router is of each token (arXiv 2411.08982v3, figure 6).

        Args:
            rule: How this router scores.

        Returns:
            `[T]`: the variance of the normalised probabilities over all experts, between 0 and (E-1)/E^2.
        """
        mass_TE = self.mass(rule)
        return (mass_TE / mass_TE.sum(-1, keepdim=True)).var(-1, correction=0)

    def remember(self, rule: RouterRule, *, scores: Tensor, choice: Tensor) -> None:
        """Take over views that a router's own kernel has computed, so that they are not computed again.

        Args:
            rule: How this router scores.
            scores: As `scores` would return.
            choice: As `choice` would return.
        """
        vars(self).setdefault("_known", {}).update({("scores", rule): scores, ("choice", rule): choice})

    def _once(self, view: str, rule: RouterRule, compute: Callable[[], Tensor]) -> Tensor:
        known: dict[tuple[str, RouterRule], Tensor] = vars(self).setdefault("_known", {})
        if (view, rule) not in known:
            known[view, rule] = compute()
        return known[view, rule]

    @property
    def num_experts(self) -> int:
        return self.logits.shape[-1]

    @property
    def top_k(self) -> int:
        return self.experts.shape[-1]


@dataclass(frozen=True, init=False)
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
    """`[G]` int64: a number of its own for every (lane, step), the same however lanes are packed."""
    row: Tensor
    """`[T]` int64: a number of its own for every row of a lane and step, the same however lanes are packed. All
    randomness derives from `key` and `row`."""
    shared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What layers of one forward pass may share: facts of the rows, computed once. Belongs to `live` and `lane`."""

    def __init__(
        self,
        *,
        layer: int,
        decode: Tensor,
        lane: Tensor,
        live: Tensor,
        num_lanes: int,
        key: Tensor,
        row: Tensor,
        shared: dict[str, Any] | None = None,
    ) -> None:
        """By hand for the reason that `Routing` has."""
        given = {} if shared is None else shared
        vars(self).update(
            layer=layer, decode=decode, lane=lane, live=live, num_lanes=num_lanes, key=key, row=row, shared=given
        )


class LastingRows(TypedDict):
    """The fields of `StepContext` that stay as they are while nobody joins or leaves."""

    decode: Tensor
    lane: Tensor
    live: Tensor
    num_lanes: int
    row: Tensor


class StepRows(LastingRows):
    """All of its fields but the layer."""

    key: Tensor
    shared: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What a policy may need to know of a model to say whether it can run there. None: not known yet."""

    num_experts: int
    top_k: int
    num_layers: int | None = None
    """Layers with a router."""
    rule: RouterRule | None = None
    fingerprint: Callable[[], str] | None = None
    """Of the routers' weights: what a calibration belongs to."""
    calibration: str | None = None
    """Where the model's calibration is, if it has one."""
