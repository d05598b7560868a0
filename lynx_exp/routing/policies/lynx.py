"""lynx: AffinityBinning (arXiv 2411.08982v3, section on the remapping algorithm; official plugin source for the
details).

Each token bins its logit gaps; each expert collects the lane's bins as a score; each token votes for K experts by its
own bin plus the affinity of the other tokens, which can only reorder experts within a bin; the experts with a vote
are kept.

The released variants: bins `ceil` with a clamp (`quant_optimized`), `ceil` without (`quant`, also its sigmoid form for
Llama-4, whose gaps are those of the logits before the sigmoid), `continuous` without (`quant_alpha*_optimized`).

Departures from the released code, needed for sound results: ties between experts of a token break by logit (there: by
expert index, which at batch 1 drops most of the true top-K); small lanes are bypassed (`min_batch`); under grouped
routing a token votes within its own groups (there: anywhere, so that too few of the kept experts may be open to it);
routers with a correction bias, which the release refuses, are read in units of logits with the bias in.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.ops.lanes import best_first, lane_size, lane_sum, lane_votes
from lynx_exp.routing.policy import Knob, LanePolicy, above, at_least
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class Lynx(LanePolicy):
    alpha: float = 3.0
    """Bins per unit of logit: above 0. The released (alpha, beta) for Qwen3-30B-A3B is (3, 2), for Mixtral-8x7B (0.7,
    1)."""
    beta: int | None = 2
    """Index of the last bin; None: no last bin. Experts further than beta / alpha below the token's best are one
    class."""
    bins: Literal["ceil", "continuous"] = "ceil"
    """Whether a logit gap is rounded up to a whole bin, or counts as it is."""

    hidden = ("bins",)
    color = "#0072B2"
    marker = "o"
    serves_groups = True
    # Wider bins than of one logit drop even first choices: worse, and hardly fewer experts. Wider still, ties decide.
    knob = Knob(parameter="alpha", low=1.0, high=8.0, integer=False, logarithmic=True)
    secondary_parameters = {"beta": (1, 2, 3, 4)}

    def __post_init__(self) -> None:
        super().__post_init__()
        above(self, "alpha", 0.0)
        if self.beta is not None:
            at_least(self, "beta", 1)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        affinity_TE, size_G = routing.affinity(rule), lane_size(step)
        lowest, whole = (-inf if self.beta is None else -float(self.beta)), self.bins == "ceil"
        if native.usable(affinity_TE):
            votes = native.lynx_votes(
                affinity_TE.numpy(), *native.arrays(step), size_G.numpy(), self.alpha, lowest, whole, routing.top_k
            )
            return torch.from_numpy(votes) > 0
        open_TE = affinity_TE > -torch.inf
        size_T1 = size_G.clamp_min(1).double()[step.lane][:, None]
        gap_TE = (self.alpha * (affinity_TE - affinity_TE.amax(-1, keepdim=True))).double()
        bin_TE = (gap_TE.ceil() if whole else gap_TE).clamp_min(lowest)  # 0, -1, ... -beta
        pull_TE = torch.where(open_TE, size_T1**bin_TE, 0.0)
        others_TE = lane_sum(pull_TE, step)[step.lane] - pull_TE
        z_TE = torch.where(open_TE, bin_TE + others_TE / size_T1, -torch.inf)
        voted_TK = best_first(z_TE, affinity_TE, routing.top_k)
        return lane_votes(voted_TK, affinity_TE, step.live, step) > 0
