"""top_k: every token runs its k best experts instead of K, as a model with `num_experts_per_tok=k` would.

Static and blind to the batch. A router that does not renormalise leaves the k weights as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lynx_exp.routing.ops.remap import drop_slots
from lynx_exp.routing.policy import Knob, Policy, at_least, between
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class TopK(Policy):
    k: int = 1
    """Experts of each token: 1..K."""

    color = "#009E73"
    marker = "^"
    knob = Knob(parameter="k", low=1, high="K")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "k", 1)

    def check(self, shape: ModelShape) -> None:
        between(self, "k", 1, shape.top_k)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        beyond_K = torch.arange(routing.top_k, device=routing.experts.device) >= self.k
        return drop_slots(routing, beyond_K & step.live[:, None], rule, keep_mass=False)
