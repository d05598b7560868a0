"""xshare: keep the experts with the largest summed score (XShare, arXiv 2602.07265; vLLM pull request 35551).

The paper's rule (known from secondary descriptions): every token's first `warm_up` experts are kept, then the lane's
best by summed probability until `budget` are; a sum over tokens is modular, so greedy is optimal for it. That the
weights are renormalised over the kept experts is standard but not stated in what could be read.

The pull request differs (its source was read): it sums raw logits (`score=logit`), warms up nothing (`warm_up=0`), and
where it does, keeps a token's first experts for that token alone (`warm_up_for=token`), skips batches larger than
`max_batch` = 48, a stand-in for prefill, and smaller than `min_batch`. Not here: its group budget, for speculative
decoding.

MoE-Spec (arXiv 2602.16052; its abstract and summaries were read) has the same set for the tokens of a draft tree: the
`budget` experts of largest summed probability, so `score=prob warm_up=0`; what falls outside is substituted, as here,
or truncated: `substitute=false`. Then a token runs those of its own top-K that are kept, and no others. What becomes of
a token none of whose experts are kept could not be read: here it runs the best of the kept ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lynx_exp.routing.ops.lanes import best_mask, lane_logits, lane_size, lane_sum, mask_of
from lynx_exp.routing.ops.remap import restrict
from lynx_exp.routing.policy import Knob, LanePolicy, at_least, between, fill_up, top_choices
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class XShare(LanePolicy):
    budget: int = 8
    """Experts that each lane keeps in each layer and step, K..E; more where the warm-up alone is more."""
    score: Literal["prob", "logit"] = "prob"
    """What is summed over the lane's tokens: scores, or raw logits, by which one token may veto an expert. A logit of
    -inf vetoes it: experts without a veto come first."""
    warm_up: int = 1
    """First experts of each token that are kept in any case: 0..K."""
    warm_up_for: Literal["lane", "token"] = "lane"
    """Whether those are open to the whole lane, or to that token only."""
    max_batch: int | None = None
    """Lanes with more live rows run vanilla."""

    substitute: bool = True
    """Whether the best of the kept experts take the place of those that a token loses."""

    hidden = ("score", "warm_up", "warm_up_for", "substitute")
    color = "#009E73"
    marker = "h"
    knob = Knob(parameter="budget", low="K", high="E")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "budget", 1)
        at_least(self, "warm_up", 0)
        if self.max_batch is not None:
            at_least(self, "max_batch", self.min_batch)

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        between(self, "budget", shape.top_k, shape.num_experts)
        between(self, "warm_up", 0, shape.top_k)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        if self.score == "prob":
            total_GE = lane_sum(routing.mass(rule), step)
        else:
            total_GE = lane_logits(routing.affinity(rule), step)
        if self.warm_up == 0 or self.warm_up_for == "token":
            keep_GE = best_mask(total_GE, total_GE, self.budget)
        else:
            keep_GE = fill_up(top_choices(routing, step, rule, self.warm_up), self.budget, total_GE, total_GE)
        if self.max_batch is not None:
            keep_GE = keep_GE | (lane_size(step) > self.max_batch)[:, None]
        return keep_GE

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        keep_GE = self.keep(routing, step, rule)
        if not self.substitute:
            return self._truncated(keep_GE, routing, step, rule)
        if self.warm_up_for == "lane" or self.warm_up == 0:
            return restrict(routing, keep_GE, step.lane, step.live, rule)
        own_TE = mask_of(routing.experts[:, : self.warm_up], routing.num_experts)
        own_T = torch.arange(len(own_TE), device=own_TE.device)
        return restrict(routing, keep_GE[step.lane] | own_TE, own_T, step.live, rule)

    def _truncated(self, keep_GE: Tensor, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        kept_TE = keep_GE[step.lane]
        if self.warm_up_for == "token":
            kept_TE = kept_TE | mask_of(routing.experts[:, : self.warm_up], routing.num_experts)
        own_TE = kept_TE & mask_of(routing.experts, routing.num_experts)
        best_T1 = routing.choice(rule).masked_fill(~kept_TE, -torch.inf).argmax(-1, keepdim=True)
        best_TE = mask_of(best_T1, routing.num_experts) & kept_TE  # where all of them are shut out, the first is named
        allowed_TE = torch.where(own_TE.any(-1, keepdim=True), own_TE, best_TE)
        return restrict(routing, allowed_TE, torch.arange(len(own_TE), device=own_TE.device), step.live, rule)
