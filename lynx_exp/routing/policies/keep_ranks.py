"""keep_ranks: every token keeps its first ranks and hands their whole mass to them (arXiv 2411.08982v3, figure 8).

Equals `top_k` on routers that renormalise; on others `top_k` leaves the weights as they are, so that the layer's output
shrinks, while this keeps the token's original top-K mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lynx_exp.routing.ops.remap import drop_slots
from lynx_exp.routing.policy import Knob, Policy, at_least, between
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class KeepRanks(Policy):
    ranks: int = 1
    """Ranks kept, the best first: 1..K."""

    purpose = "probe"
    knob = Knob(parameter="ranks", low=1, high="K")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "ranks", 1)

    def check(self, shape: ModelShape) -> None:
        between(self, "ranks", 1, shape.top_k)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        beyond_K = torch.arange(routing.top_k, device=routing.experts.device) >= self.ranks
        return drop_slots(routing, beyond_K & step.live[:, None], rule, keep_mass=True)
