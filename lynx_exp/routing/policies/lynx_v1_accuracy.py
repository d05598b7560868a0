"""lynx_v1_accuracy: keep the first choice of every confident token (the accuracy-preserving variant of arXiv
2411.08982v1).

Only v1-era code could be read (`advanced` in the vLLM 0.7.0 fork), so the mapping to the paper's name is inferred.
There the kept set may be smaller than K or empty; here it is filled up to max(K, min_experts) by votes, then by
summed router probability.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lynx_exp.routing.ops.lanes import lane_votes
from lynx_exp.routing.policy import Knob, LanePolicy, at_least, between, fill_up, votes_then_mass
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class LynxV1Accuracy(LanePolicy):
    confidence: float = 0.5
    """A token is confident if (w1 - w2) / w1, of its two largest combine weights, exceeds this: 0..1."""
    min_experts: int = 2
    """Floor on the experts that a lane keeps; K where that is more."""

    color = "#E69F00"
    marker = "P"
    knob = Knob(parameter="confidence", low=0.0, high=1.0, integer=False, falling=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "confidence", 0.0, 1.0)
        at_least(self, "min_experts", 1)

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        if shape.top_k < 2:
            raise ValueError(
                f"{self.name}: compares a token's two best experts; this model has top-k {shape.top_k}, it needs 2"
            )
        between(self, "min_experts", 1, shape.num_experts)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        weights_TK = routing.weights.float()
        confident_T = (weights_TK[:, 0] - weights_TK[:, 1]) / (weights_TK[:, 0] + 1e-8) > self.confidence
        protected_GE = lane_votes(routing.experts[:, :1], routing.choice(rule), confident_T, step) > 0
        votes_GE, mass_GE = votes_then_mass(routing, step, rule)
        return fill_up(protected_GE, max(routing.top_k, self.min_experts), votes_GE, mass_GE)
