"""top_p: each token keeps its shortest prefix of experts whose probabilities sum to at least p (Huang et al., "Harder
Tasks Need More Experts", arXiv 2403.07652).

There the model is trained that way, with p = 0.4; on a model trained for a fixed top-K this is a heuristic, capped at
K. Blind to the batch. The probabilities are the router's over all experts, for sigmoid routers its scores over their
sum; a bias orders the experts and has no part in them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lynx_exp.routing.ops.remap import drop_slots
from lynx_exp.routing.policy import Knob, Policy, above, between
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class TopP(Policy):
    p: float = 0.4
    """Probability to cover: above 0, at most 1."""

    color = "#8c8c8c"
    marker = "v"
    yields_marker = True
    knob = Knob(parameter="p", low=1e-3, high=1.0, integer=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        above(self, "p", 0.0)
        between(self, "p", 0.0, 1.0)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        score_TE = routing.scores(rule).double()
        share_TK = score_TE.gather(-1, routing.experts) / score_TE.sum(-1, keepdim=True)
        before_TK = share_TK.cumsum(-1) - share_TK
        return drop_slots(routing, (before_TK >= self.p) & step.live[:, None], rule, keep_mass=True)
