"""lynx_v1_accuracy: keep the first choice of every confident token (the accuracy-preserving variant of arXiv
2411.08982v1).

Only v1-era code could be read (`advanced` in the vLLM 0.7.0 fork), so the mapping to the paper's name is inferred.
There the kept set may be smaller than K or empty; here it is filled up to max(K, min_experts) by votes, then by
summed router probability.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lynx_exp.routing.lanes import lane_votes
from lynx_exp.routing.policy import LanePolicy, at_least, between, fill_up, votes_then_probability
from lynx_exp.routing.types import RouterRule, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class LynxV1Accuracy(LanePolicy):
    confidence: float = 0.5
    """A token is confident if (w1 - w2) / w1, of its two largest combine weights, exceeds this: 0..1."""
    min_experts: int = 2
    """Floor on the experts that a lane keeps; K where that is more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "confidence", 0.0, 1.0)
        at_least(self, "min_experts", 1)

    def check(self, num_experts: int, top_k: int) -> None:
        if top_k < 2:
            raise ValueError(
                f"{self.name}: needs a model with top-k of at least 2 to compare two weights; this one has {top_k}"
            )
        between(self, "min_experts", 1, num_experts)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        weights_TK = routing.weights.float()
        confident_T = (weights_TK[:, 0] - weights_TK[:, 1]) / (weights_TK[:, 0] + 1e-8) > self.confidence
        protected_GE = lane_votes(routing.experts[:, :1], confident_T, step, routing.num_experts) > 0
        votes_GE, probability_GE = votes_then_probability(routing, step, rule)
        return fill_up(protected_GE, max(routing.top_k, self.min_experts), votes_GE, probability_GE)
