"""lynx: AffinityBinning (arXiv 2411.08982v3, section on the remapping algorithm; official plugin source for the
details).

Each token bins its logit gaps; each expert collects the lane's bins as a score; each token votes for K experts by its
own bin plus the affinity of the other tokens, which can only reorder experts within a bin; the experts with a vote
are kept.

Two departures from the released code, both needed for sound results: ties between experts of a token break by logit
(there: by expert index, which at batch 1 drops most of the true top-K), and small lanes are bypassed (`min_batch`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_exp.routing import native
from lynx_exp.routing.lanes import best_first, lane_size, lane_sum, lane_votes
from lynx_exp.routing.policy import LanePolicy, at_least
from lynx_exp.routing.types import RouterRule, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class Lynx(LanePolicy):
    alpha: float = 3.0
    """Bins per unit of logit; the released setting for Qwen3-30B-A3B is (3, 2), for Mixtral-8x7B (0.7, 1)."""
    beta: int = 2
    """Index of the last bin: experts further than beta / alpha below the token's best are one class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ValueError(f"{self.name}: alpha={self.alpha}: must be above 0")
        at_least(self, "beta", 1)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        logits_TE, size_G = routing.logits, lane_size(step)
        if native.usable(logits_TE):
            votes = native.lynx_votes(
                logits_TE.numpy(), *native.arrays(step), size_G.numpy(), self.alpha, self.beta, routing.top_k
            )
            return torch.from_numpy(votes) > 0
        size_T1 = size_G.clamp_min(1).double()[step.lane][:, None]
        gap_TE = self.alpha * (logits_TE - logits_TE.amax(-1, keepdim=True))
        bin_TE = gap_TE.ceil().clamp_min(-self.beta).double()  # 0, -1, ... -beta
        affinity_TE = size_T1**bin_TE
        others_TE = lane_sum(affinity_TE, step)[step.lane] - affinity_TE
        voted_TK = best_first(bin_TE + others_TE / size_T1, logits_TE, routing.top_k)
        return lane_votes(voted_TK, step.live, step, routing.num_experts) > 0
