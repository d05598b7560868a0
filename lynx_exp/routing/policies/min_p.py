"""min_p: each token drops the experts whose weight is below `ratio` times that of its first (gate threshold, as in
llama.cpp issue 4470; NAEE's skipping with one ratio for all layers and ranks).

Blind to the batch. The first expert is never dropped. "First" is by the router's choice, the weight is its score: where
a bias takes part in the choice, it has none in the weight, so a later expert may weigh more than the first. A scale for
each expert (`RouterRule.expert_scale`) is left aside.
"""

from __future__ import annotations

from dataclasses import dataclass

from lynx_exp.routing.ops.remap import drop_slots
from lynx_exp.routing.policy import Knob, Policy, between
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class MinP(Policy):
    ratio: float = 0.3
    """Share of the first expert's weight below which one is dropped: 0..1. 0 drops nothing, 1 all that is weaker than
    the first."""

    color = "#8c8c8c"
    marker = "^"
    yields_marker = True
    knob = Knob(parameter="ratio", low=0.0, high=1.0, integer=False, falling=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, "ratio", 0.0, 1.0)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        score_TK = routing.scores(rule).gather(-1, routing.experts)
        weak_TK = score_TK < self.ratio * score_TK[:, :1]
        return drop_slots(routing, weak_TK & step.live[:, None], rule, keep_mass=True)
