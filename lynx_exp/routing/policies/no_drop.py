"""no_drop: the control that separates what a policy does from what its code path does.

The path of a batch-aware policy (score, keep, remap) with every expert kept: tokens and weights equal vanilla's bit
for bit, time does not. Without it a slow or inexact routing path is mistaken for the cost of dropping experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lynx_exp.routing.policy import LanePolicy, most_voted
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class NoDrop(LanePolicy):
    """Keeps all experts, by the ranking that `lynx_v1_latency` uses."""

    purpose = "control"
    color = "#8c8c8c"
    marker = "X"
    serves_groups = True

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        return most_voted(routing, step, rule, routing.num_experts)
