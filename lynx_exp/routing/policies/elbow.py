"""elbow: each token keeps its experts before the knee of its sorted probabilities (arXiv 2608.04401; its abstract was
read, and of its text that it finds the knee as Kneedle does; the definition is secondary).

The probabilities of all experts, sorted, fall steeply and then flatten out. The knee is the rank that lies furthest
below the straight line from the first to the last of them; it begins the flat part. The experts before it run, at least
one and at most K, and `extra` more. Where ranks tie, the first of them is the knee.

Blind to the batch. Probabilities are the router's scores; a bias orders a token's experts and has no part in them.
Inferred, for want of the text: all experts and not the top-K alone make the curve, and the knee itself does not run.
Weights are renormalised as by `top_p`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lynx_exp.routing.ops.remap import drop_slots
from lynx_exp.routing.policy import Knob, Policy, at_least, between
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class Elbow(Policy):
    extra: int = 0
    """Experts from the knee on that run as well: 0..K."""

    knob = Knob(parameter="extra", low=0, high="K")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "extra", 0)

    def check(self, shape: ModelShape) -> None:
        between(self, "extra", 0, shape.top_k)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        sorted_TE = routing.scores(rule).double().sort(dim=-1, descending=True).values
        rank_E = torch.arange(routing.num_experts, device=sorted_TE.device)
        slope_T1 = (sorted_TE[:, -1:] - sorted_TE[:, :1]) / max(routing.num_experts - 1, 1)
        below_TE = sorted_TE[:, :1] + slope_T1 * rank_E - sorted_TE
        kept_T1 = below_TE.argmax(-1, keepdim=True).clamp_min(1) + self.extra
        return drop_slots(routing, (rank_E[: routing.top_k] >= kept_T1) & step.live[:, None], rule, keep_mass=True)
