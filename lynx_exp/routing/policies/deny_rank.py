"""deny_rank: take one rank of every token's experts away (arXiv 2411.08982v3, figure 7).

`replace` lets the expert of rank K enter, as when the denied logit is set to -inf and the top-K taken again; `drop`
runs one expert less. The paper does not say which it used; its wording (reassign) suggests `replace`, the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from lynx_exp.routing.ops.lanes import mask_of
from lynx_exp.routing.ops.remap import drop_slots, restrict
from lynx_exp.routing.policy import Policy, at_least, between
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class DenyRank(Policy):
    rank: int = 1
    """The rank denied: 0..K-1; 0 is the token's best expert."""
    mode: Literal["replace", "drop"] = "replace"
    """Whether the next best expert takes its place, or none."""

    purpose = "probe"
    color = "#CC79A7"
    marker = "v"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "rank", 0)

    def check(self, shape: ModelShape) -> None:
        between(self, "rank", 0, shape.top_k - 1)
        usable, rule = shape.num_experts, shape.rule
        if rule is not None and rule.grouped:
            usable = usable // rule.groups * rule.top_groups
        if self.mode == "replace" and usable == shape.top_k:
            raise ValueError(f"{self.name}: mode=replace: all {usable} experts are already used; use mode=drop")
        if self.mode == "drop" and shape.top_k == 1:
            raise ValueError(
                f"{self.name}: mode=drop: the model has top-k 1, so nothing would be left; use mode=replace"
            )

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        if self.mode == "drop":
            denied_K = torch.arange(routing.top_k, device=routing.experts.device) == self.rank
            return drop_slots(routing, denied_K & step.live[:, None], rule, keep_mass=True)
        allowed_TE = ~mask_of(routing.experts[:, self.rank : self.rank + 1], routing.num_experts)
        own_T = torch.arange(len(allowed_TE), device=allowed_TE.device)
        return restrict(routing, allowed_TE, own_T, step.live, rule)
