"""reassign: some of the tokens' experts are replaced by random ones, for sensitivity studies (arXiv 2411.08982v3,
figures 4 and 6).

Each slot of a token is replaced with probability `fraction` by an expert drawn uniformly from those that the token did
not choose and that its router does not shut out; where none is left, it stays. With `gate`, only tokens on one side of
a confidence threshold are touched; confidence is the variance of the router's normalised probabilities over all
experts, as in figure 6. What weight a new expert gets there is unknown: here the router's own for it, so that it is as
if the router had chosen it (`new_weight=own`), or that of the expert replaced (`new_weight=slot`), a much stronger
disturbance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lynx_exp.routing.ops.draws import LOW_32, mix, mix_64
from lynx_exp.routing.ops.lanes import mask_of
from lynx_exp.routing.ops.remap import reweigh
from lynx_exp.routing.ops.weigh import OWN_WAY
from lynx_exp.routing.policy import Policy, at_least, between
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class Reassign(Policy):
    fraction: float = 0.5
    """Probability that a slot is replaced: 0..1."""
    first_rank: int = 0
    """Rank before which none is replaced: 0..K-1; 1 spares each token's best expert."""
    gate: Literal["none", "high", "low"] = "none"
    """Which tokens are touched: all, those with confidence above the threshold, those with at most that."""
    threshold: float = 0.01
    """Confidence at which `gate` parts tokens: 0..(E-1)/E^2, the variance of the normalised probabilities."""
    new_weight: Literal["own", "slot"] = "own"
    """Weight of a new expert: the router's own for it, or that of the expert replaced."""
    seed: int = 0
    """Seed of the draw."""

    purpose = "probe"
    hidden = ("first_rank", "new_weight")

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "fraction", 0.0, 1.0)
        at_least(self, "first_rank", 0)
        at_least(self, "threshold", 0.0)
        between(self, "seed", 0, 2**31 - 1)
        if self.new_weight == "slot" and self.weights not in OWN_WAY:
            raise ValueError(f"{self.name}: new_weight=slot: weights={self.weights} says what a new expert weighs")

    def check(self, shape: ModelShape) -> None:
        between(self, "first_rank", 0, shape.top_k - 1)
        if shape.rule is not None and shape.rule.grouped:
            raise ValueError(f"{self.name}: this model's routers limit a token to some groups of experts; not defined")
        if shape.num_experts < 2 * shape.top_k:
            raise ValueError(
                f"{self.name}: needs {shape.top_k} experts beside a token's own; this model has {shape.num_experts}"
            )

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        row_T1 = self._row_hash(step)[:, None]
        rank_K = torch.arange(routing.top_k, device=row_T1.device)
        expert_E = torch.arange(routing.num_experts, device=row_T1.device)
        draw_TK = mix(row_T1 ^ mix(rank_K + 1)).double() / 2**32
        replaced_TK = (
            (draw_TK < self.fraction) & (rank_K >= self.first_rank) & self.touched(routing, step, rule)[:, None]
        )
        order_TE = mix(row_T1 ^ mix(expert_E + 0x10000))
        shut_TE = routing.choice(rule) == -torch.inf
        order_TE = order_TE.masked_fill(shut_TE | mask_of(routing.experts, routing.num_experts), -1)
        others_TK = order_TE.argsort(dim=-1, descending=True, stable=True)[:, : routing.top_k]
        replaced_TK = replaced_TK & (order_TE.gather(-1, others_TK) >= 0)
        experts_TK = torch.where(replaced_TK, others_TK, routing.experts)
        weights_TK = reweigh(routing, experts_TK, rule) if self.new_weight == "own" else routing.weights
        changed_T1 = replaced_TK.any(-1, keepdim=True)
        return Routing(
            logits=routing.logits,
            experts=experts_TK,
            weights=torch.where(changed_T1, weights_TK, routing.weights),
        )

    def _row_hash(self, step: StepContext) -> Tensor:
        """`[T]`."""
        name = f"reassign {self.seed}"
        if name not in step.shared:
            step.shared[name] = mix_64(step.key)[step.lane] ^ mix(mix_64(step.row) ^ (self.seed & LOW_32))
        return mix(step.shared[name] ^ (step.layer * 1_000_003 & LOW_32))

    def touched(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        """`[T]` bool."""
        if self.gate == "none":
            return step.live
        high_T = routing.confidence(rule) > self.threshold
        return step.live & (high_T if self.gate == "high" else ~high_T)
