"""coverage: grow the kept set by the expert that the lane's tokens gain most from, until none gains enough. A policy of
this project.

What a token gets out of a kept set is m_t, the mass of its K best experts inside it, relative to that of its own top-K.
A concave function of m_t summed over the lane is a submodular function of the set: a second expert for a token that is
served already is worth less. So the greedy set is within 1 - 1/e of the best of its size (Nemhauser, Wolsey and Fisher
1978), and gains only shrink, which makes lazy evaluation exact (Minoux 1978). XShare sums the scores themselves: the
modular shadow of this, which pays again and again for the same tokens.

With p_te the relative mass of expert e for token t, S_t the K best of them inside the set, m_t = sum S_t, and
d_te = max(0, p_te - min S_t), an expert's gain is, summed over the lane's tokens,
  utility=mass   (1 - m_t)^power - (1 - m_t - d_te)^power: what the tokens lose less. With power 1 that is plain mass;
                 above, one token's large loss counts for more than many small ones, and so it does in the layer's
                 output.
  utility=log    log((m_t + d_te + c) / (m_t + c)), c = 0.02: proportional fairness.
`tolerance` stops the growth once the best expert left is worth less than that to a token on average, so that the set is
as large as this layer and this step need: less than a loss of `tolerance` brought to nothing (utility=mass), less than
`tolerance` in the logarithm (utility=log). A stop by `budget` alone fixes the size instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lynx_exp.routing import native, native_coverage
from lynx_exp.routing.lanes import best_first, lane_size, lane_sum, mask_of
from lynx_exp.routing.policy import Knob, LanePolicy, above, at_least, at_most, between, top_choices
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext

FLOOR = 0.02
"""What the log utility adds to a token's relative mass: the smaller, the more a token with nothing counts."""


@dataclass(frozen=True, kw_only=True)
class Coverage(LanePolicy):
    tolerance: float | None = 0.2
    """Gain per token below which no further expert is kept; None: only `budget` stops."""
    budget: int | None = None
    """Experts that each lane keeps at most, K..E; None: only `tolerance` stops."""
    utility: Literal["mass", "log"] = "mass"
    power: float = 4.0
    """How much more a large loss of one token counts than small ones of many: at least 1; utility=mass only."""
    guarantee: int = 0
    """First experts of each token that are kept in any case: 0..K."""

    serves_groups = True
    knob = Knob(parameter="tolerance", low=1e-3, high=1.0, whole=False, falling=True, logarithmic=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is None and self.budget is None:
            raise ValueError(f"{self.name}: tolerance=None: give a tolerance, a budget, or both")
        if self.tolerance is not None:
            above(self, "tolerance", 0.0)
            at_most(self, "tolerance", 100.0)
        if self.budget is not None:
            at_least(self, "budget", 1)
        between(self, "power", 1.0, 100.0)
        at_least(self, "guarantee", 0)

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        if self.budget is not None:
            between(self, "budget", shape.top_k, shape.num_experts)
        between(self, "guarantee", 0, shape.top_k)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        """Every live row finds K experts open to it, even where that takes more than `budget`."""
        mass_TE, open_TE = routing.mass(rule), routing.choice(rule) > -torch.inf
        budget = routing.num_experts if self.budget is None else self.budget
        log = self.utility == "log"
        least = -1.0 if self.tolerance is None else self.tolerance ** (1.0 if log else self.power)
        if native.usable(mass_TE):
            keep = native_coverage.coverage(
                mass_TE.numpy(),
                open_TE.numpy(),
                routing.experts.numpy(),
                *native.arrays(step),
                step.num_lanes,
                budget,
                least,
                FLOOR if log else 0.0,
                self.power,
                self.guarantee,
            )
            return torch.from_numpy(keep)

        share_TE = mass_TE.double()
        share_TE = share_TE / share_TE.gather(-1, routing.experts).sum(-1, keepdim=True)
        if self.guarantee:
            keep_GE = top_choices(routing, step, self.guarantee)
        else:
            keep_GE = torch.zeros(step.num_lanes, routing.num_experts, dtype=torch.bool, device=mass_TE.device)
        total_GE = lane_sum(mass_TE, step)
        least_G1 = least * lane_size(step)[:, None].double()
        best_TK = share_TE.where(keep_GE[step.lane], 0.0).topk(routing.top_k, -1).values
        for _ in range(routing.num_experts):
            gain_TE = (share_TE - best_TK[:, -1:]).clamp_min(0.0)
            covered_T1 = best_TK.sum(-1, keepdim=True)
            if log:
                gain_TE = (gain_TE / (covered_T1 + FLOOR)).log1p()
            elif self.power != 1.0:
                lost_T1 = (1.0 - covered_T1).clamp_min(0.0)
                gain_TE = lost_T1**self.power - (lost_T1 - gain_TE).clamp_min(0.0) ** self.power
            gain_GE = lane_sum(gain_TE, step).masked_fill(keep_GE, -1.0)
            short_T = (keep_GE[step.lane] & open_TE).sum(-1) < routing.top_k
            short_G = lane_sum((short_T & step.live)[:, None].float(), step) > 0
            next_G1 = best_first(gain_GE, total_GE, 1)
            enough_G1 = (keep_GE.sum(-1, keepdim=True) >= budget) | (gain_GE.gather(-1, next_G1) < least_G1)
            grows_G1 = (~enough_G1 | short_G) & ~keep_GE.all(-1, keepdim=True)
            if grows_G1.device.type == "cpu" and not grows_G1.any():
                break
            added_GE = mask_of(next_G1, routing.num_experts) & grows_G1
            keep_GE = keep_GE | added_GE
            new_T1 = share_TE.where(added_GE[step.lane], 0.0).sum(-1, keepdim=True)
            best_TK = torch.cat([best_TK, new_T1], -1).topk(routing.top_k, -1).values
        return keep_GE
