"""oea: Opportunistic Expert Activation (Oncescu et al., arXiv 2511.02237, algorithm 2; with the defaults algorithm 1,
the recommended one).

Each token insists on its first `k0` experts (fewer where those of less rank already hold probability `p`); then takes,
for free, whatever else of its ranking the lane has activated anyway, up to `k_max` experts. A token that finds fewer
runs fewer. The printed stopping test would let a token exceed k_max; the text says never, and so it is here.

The weights are the router's, renormalised over the token's experts. The paper calls that optional for models that do
not renormalise and does not say what else; here such a token keeps its original top-K mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lynx_exp.routing.ops.lanes import lane_votes
from lynx_exp.routing.ops.remap import restrict
from lynx_exp.routing.policy import Knob, LanePolicy, above, at_least, between, top_choices
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class Oea(LanePolicy):
    k0: int = 1
    """Experts that a token insists on: 1..K. The paper serves Qwen3-30B-A3B with 3..7 of 8, Qwen3-235B-A22B with 5."""
    p: float = 1.0
    """Probability at which a token insists on no more experts: above 0, at most 1. The paper finds that less than 1
    brings nothing."""
    k_max: int | None = None
    """Experts of a token at most; None: K. The paper finds 8 or 9 of 8 best."""
    max_rank: int | None = None
    """How far down its ranking a token looks for company; None: to the end, which the paper finds best."""

    hidden = ("p",)
    color = "#CC79A7"
    marker = "p"
    serves_groups = True
    knob = Knob(parameter="k0", low=1, high="K")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "k0", 1)
        above(self, "p", 0.0)
        between(self, "p", 0.0, 1.0)
        for field in ("k_max", "max_rank"):
            if getattr(self, field) is not None:
                at_least(self, field, self.k0)

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        between(self, "k0", 1, shape.top_k)
        for field in ("k_max", "max_rank"):
            if getattr(self, field) is not None:
                between(self, field, self.k0, shape.num_experts)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> torch.Tensor:
        if self.p == 1.0:
            return top_choices(routing, step, rule, self.k0)
        score_TE = routing.scores(rule).double()
        share_TK = score_TE.gather(-1, routing.experts[:, : self.k0]) / score_TE.sum(-1, keepdim=True)
        insists_TK = share_TK.cumsum(-1) - share_TK < self.p
        asked_TK = torch.where(insists_TK, routing.experts[:, : self.k0], routing.experts[:, :1])
        return lane_votes(asked_TK, routing.choice(rule), step.live, step) > 0

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        keep_GE = self.keep(routing, step, rule)
        if self.max_rank is None:
            return restrict(routing, keep_GE, step.lane, step.live, rule, self.k_max)
        choice_TE = routing.choice(rule)
        within_TE = choice_TE == -torch.inf  # what is shut out has no rank
        order_TE = choice_TE.argsort(dim=-1, descending=True, stable=True)
        within_TE.scatter_(-1, order_TE[:, : self.max_rank], True)
        own_T = torch.arange(len(within_TE), device=within_TE.device)
        return restrict(routing, keep_GE[step.lane] & within_TE, own_T, step.live, rule, self.k_max)
