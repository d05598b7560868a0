"""vanilla: the model's own routing."""

from __future__ import annotations

from dataclasses import dataclass

from lynx_exp.routing.policy import Policy
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class Vanilla(Policy):
    """The baseline. An engine attaches nothing for it."""

    purpose = "baseline"
    color = "#000000"
    marker = "*"

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        return routing
