"""naee: dynamic expert skipping (Lu et al., "Not All Experts are Equal", arXiv 2402.14800; official source).

A token drops its second expert if its weight is below the layer's median ratio times that of the first, and runs the
first alone. By construction about half of the tokens do. For K > 2 the rank-wise form: each rank has its own median
(arXiv 2512.21911, read as a summary only; that a rank is compared with the first, not with the one before, is
inferred).

Weights are the router's scores: a bias that takes part in the choice of experts has no part in them, nor has a scale
for each expert.

Blind to the batch: an expert is saved only where every token of the lane skips it. The paper skips in prefill too
(`phases=both`). Ratios come from `lynx-prepare calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_exp.routing.calibration import Calibrated
from lynx_exp.routing.ops.remap import drop_slots
from lynx_exp.routing.policy import Knob, at_least
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class Naee(Calibrated):
    strength: float = 1.0
    """Factor on the calibrated ratios: at least 0; 1 is the paper's rule, 0 skips nothing."""

    color = "#8c8c8c"
    marker = "<"
    knob = Knob(parameter="strength", low=0.0, high=20.0, integer=False, falling=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "strength", 0.0)

    def check(self, shape: ModelShape) -> None:
        if shape.top_k < 2:
            raise ValueError(f"{self.name}: needs a model with top-k of at least 2; this one has {shape.top_k}")

    def ratios(self, device: torch.device) -> Tensor:
        """`[L, K]` below which a rank is dropped."""
        kept: dict[torch.device, Tensor] = self.__dict__.setdefault("_ratios", {})
        if device not in kept:
            kept[device] = self.table(self.facts.ratio, device) * self.strength
        return kept[device]

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        ratio_K = self.ratios(routing.experts.device)[step.layer]
        score_TK = routing.scores(rule).gather(-1, routing.experts)
        skipped_TK = score_TK < ratio_K * score_TK[:, :1]
        skipped_TK[:, 0] = False
        return drop_slots(routing, skipped_TK & step.live[:, None], rule, keep_mass=True)
