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

One expert after the other is serial: a GPU waits for as many sums over the lane as experts are kept. With `rounds` the
set grows by several at a time, above a threshold that falls from round to round, by equal ratios from the best gain of
the first to `tolerance` (descending thresholds: Badanidiyuru and Vondrak 2014, section 3). Experts that serve the same
tokens would all pass it at once, so each token bids what it would gain for the one candidate that gives it most, and a
candidate stays whose bids make up half of the threshold: bids of different experts come from different tokens and
nothing in them is counted twice. The best candidate stays in any case, and the best expert while fewer than K are kept.
Without a tolerance the threshold halves, and the last round fills up to `budget`. The set is another than the greedy
one; `benchmarks/coverage_rounds.py` compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lynx_exp.routing.backends.numba import native, native_coverage
from lynx_exp.routing.ops.lanes import best_first, lane_size, lane_sum, lane_votes, mask_of
from lynx_exp.routing.policy import Knob, LanePolicy, above, at_least, at_most, between, top_choices
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext

ENOUGH = 0.5
"""Of the threshold, that a candidate's bids have to make up."""
FIRST = 2.0**18
"""More than any gain: puts those that stay before those that fill up."""
FLOOR = 0.02
"""What the log utility adds to a token's relative mass: the smaller, the more a token with nothing counts."""


@dataclass(frozen=True, kw_only=True)
class Coverage(LanePolicy):
    tolerance: float | None = 0.2
    """Gain per token below which no further expert is kept: above 0; None: only `budget` stops."""
    budget: int | None = None
    """Experts that each lane keeps at most, K..E; None: only `tolerance` stops."""
    utility: Literal["mass", "log"] = "mass"
    """What an expert gains a token: loss of mass to a power, or logarithm of mass."""
    power: float = 4.0
    """How much more a large loss of one token counts than small ones of many: 1..100; utility=mass only."""
    guarantee: int = 0
    """First experts of each token that are kept in any case: 0..K."""
    rounds: int | None = None
    """Rounds in which the set grows, 1..64; None: an expert at a time, greedily."""

    hidden = ("utility", "power", "guarantee")
    color = "#000000"
    marker = "o"
    yields_marker = True
    serves_groups = True
    knob = Knob(parameter="tolerance", low=1e-3, high=1.0, integer=False, falling=True, logarithmic=True)

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
        if self.rounds is not None:
            between(self, "rounds", 1, 64)

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        if self.budget is not None:
            between(self, "budget", shape.top_k, shape.num_experts)
        between(self, "guarantee", 0, shape.top_k)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        """Every live row finds K experts open to it (all that are, if those are fewer), even where that takes more than
        `budget`."""
        mass_TE, open_TE = routing.mass(rule), routing.choice(rule) > -torch.inf
        budget = routing.num_experts if self.budget is None else self.budget
        log = self.utility == "log"
        least = -1.0 if self.tolerance is None else self.tolerance ** (1.0 if log else self.power)
        if self.rounds is None and native.usable(mass_TE):
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
            keep_GE = top_choices(routing, step, rule, self.guarantee)
        else:
            keep_GE = torch.zeros(step.num_lanes, routing.num_experts, dtype=torch.bool, device=mass_TE.device)
        total_GE = lane_sum(mass_TE, step)
        least_G1 = least * lane_size(step)[:, None].double()
        if self.rounds is not None:
            keep_GE = self._in_rounds(share_TE, keep_GE, total_GE, least_G1, budget, routing.top_k, step)
            return keep_GE | self._for_short(keep_GE, open_TE, routing, step, rule) if rule.grouped else keep_GE
        best_TK = share_TE.where(keep_GE[step.lane], 0.0).topk(routing.top_k, -1).values
        for _ in range(routing.num_experts):
            gain_GE = lane_sum(self._gain(share_TE, best_TK), step).masked_fill(keep_GE, -1.0)
            short_T = _short(keep_GE, open_TE, routing, step)
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

    def _gain(self, share_TE: Tensor, best_TK: Tensor) -> Tensor:
        """`[T, E]`: what each expert would give each token, whose best K shares in the set are `best_TK`."""
        gain_TE = (share_TE - best_TK[:, -1:]).clamp_min(0.0)
        covered_T1 = best_TK.sum(-1, keepdim=True)
        if self.utility == "log":
            return (gain_TE / (covered_T1 + FLOOR)).log1p()
        if self.power == 1.0:
            return gain_TE
        lost_T1 = (1.0 - covered_T1).clamp_min(0.0)
        return lost_T1**self.power - (lost_T1 - gain_TE).clamp_min(0.0) ** self.power

    def _in_rounds(
        self,
        share_TE: Tensor,
        keep_GE: Tensor,
        total_GE: Tensor,
        least_G1: Tensor,
        budget: int,
        top_k: int,
        step: StepContext,
    ) -> Tensor:
        """`[G, E]`: at least K experts a lane, and more than `budget` only where `guarantee` asks for them."""
        assert self.rounds is not None
        first_G1 = torch.ones_like(least_G1)
        for number in range(1, self.rounds + 1):
            last = number == self.rounds
            best_TK = share_TE.where(keep_GE[step.lane], 0.0).topk(top_k, -1).values
            gain_TE = self._gain(share_TE, best_TK)
            gain_GE = lane_sum(gain_TE, step).masked_fill(keep_GE, -1.0)
            if number == 1:
                first_G1 = gain_GE.amax(-1, keepdim=True)
            ratio_G1 = torch.full_like(first_G1, 0.5**number)
            if self.tolerance is not None:
                best_G1 = first_G1.where(first_G1 > 0.0, 1.0)
                ratio_G1 = (least_G1 / best_G1).clamp_max(1.0) ** (number / self.rounds)
            limit_G1 = least_G1 if last else torch.maximum(first_G1 * ratio_G1, least_G1)
            wanted_GE = (gain_GE >= limit_G1) & ~keep_GE
            wanted_TE = gain_TE.where(wanted_GE[step.lane], -1.0)
            most_TE = wanted_TE == wanted_TE.amax(-1, keepdim=True)
            bid_TE = gain_TE.where(most_TE & (most_TE.cumsum(-1) == 1) & wanted_GE[step.lane], 0.0)
            best_GE = mask_of(best_first(gain_GE, total_GE, 1), gain_GE.shape[-1])
            kept_G1 = keep_GE.sum(-1, keepdim=True)
            stays_GE = (wanted_GE & (lane_sum(bid_TE, step) >= ENOUGH * limit_G1)) | (
                best_GE & (wanted_GE | (kept_G1 < top_k))
            )
            room_G1 = budget - kept_G1
            count_G1 = torch.minimum(stays_GE.sum(-1, keepdim=True), room_G1)
            if last:
                count_G1 = torch.maximum(count_G1, top_k - kept_G1)
                count_G1 = torch.maximum(count_G1, room_G1) if self.tolerance is None else count_G1
            rank_GE = best_first(gain_GE + FIRST * stays_GE, total_GE, gain_GE.shape[-1]).argsort(-1)
            keep_GE = keep_GE | (rank_GE < count_G1)
        return keep_GE & (lane_size(step) > 0)[:, None]

    def _for_short(
        self, keep_GE: Tensor, open_TE: Tensor, routing: Routing, step: StepContext, rule: RouterRule
    ) -> Tensor:
        """`[G, E]`: the own experts of rows that find fewer than K of the kept ones open to them."""
        short_T = _short(keep_GE, open_TE, routing, step)
        return lane_votes(routing.experts, routing.choice(rule), short_T, step) > 0


def _short(keep_GE: Tensor, open_TE: Tensor, routing: Routing, step: StepContext) -> Tensor:
    """`[T]` bool: rows that find fewer of the kept experts open to them than they would run."""
    return (keep_GE[step.lane] & open_TE).sum(-1) < open_TE.sum(-1).clamp_max(routing.top_k)
