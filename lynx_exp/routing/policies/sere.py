"""sere: Similarity-based Expert Re-routing (Wu et al., arXiv 2602.07616; official vLLM plugin source).

Every token's first `primary` experts stay. Any other expert of a token stays if it is some row's primary in the lane;
else its most similar primary runs in its place, with its weight, unless even that one is less similar than `threshold`
(a critical expert). So a token may run one expert in two slots; their weights add up.

As released it acts in prefill as well (`phases=both`). Similarities come from `lynx-prepare calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.calibration import Calibrated
from lynx_exp.routing.policy import Knob, at_least, between, top_choices
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class Sere(Calibrated):
    min_batch: int = 2  # with one row there is no union of experts to shrink
    primary: int = 1
    """First experts of each token that are never replaced: 1..K. The released default is 4; the paper reports 1 and 2
    of 4 for Qwen1.5-MoE."""
    threshold: float = 0.0
    """Similarity below which an expert is not replaced: 0..1. The paper uses 0 to 0.3."""
    metric: Literal["frobenius", "cosine", "cka"] = "frobenius"
    """How similarity of two experts is measured."""

    kind = "batch-aware"
    hidden = ("metric",)
    color = "#E69F00"
    marker = "d"
    knob = Knob(parameter="threshold", low=0.0, high=1.0, integer=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "primary", 1)
        between(self, "threshold", 0.0, 1.0)

    def check(self, shape: ModelShape) -> None:
        between(self, "primary", 1, shape.top_k)

    def similarities(self, device: torch.device) -> Tensor:
        """`[L, E, E]` of the metric."""
        return self.table(self.facts.similarity[self.metric], device)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        alike_EE = self.similarities(routing.experts.device)[step.layer]
        primary_GE = top_choices(routing, step, rule, self.primary)
        if native.usable(alike_EE):
            experts = native.substitute(
                routing.experts.numpy(),
                primary_GE.numpy(),
                alike_EE.numpy(),
                *native.arrays(step),
                self.primary,
                self.threshold,
            )
            return replace(routing, experts=torch.from_numpy(experts))
        alike_GEE = alike_EE.masked_fill(~primary_GE[:, None], -1.0)
        best_GE = alike_GEE.max(-1)
        stays_GE = primary_GE | (best_GE.values < self.threshold)
        own_E = torch.arange(routing.num_experts, device=routing.experts.device)
        instead_GE = torch.where(stays_GE, own_E, best_GE.indices)
        new_TK = instead_GE[step.lane].gather(-1, routing.experts)
        new_TK[:, : self.primary] = routing.experts[:, : self.primary]
        return replace(routing, experts=torch.where(step.live[:, None], new_TK, routing.experts))
