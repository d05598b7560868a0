"""lexi: a fixed number of experts for each layer (LExI, Chitty-Venkata et al., arXiv 2509.02753).

Each layer's loss by its first k experts alone, D_l(k), is measured on Gaussian inputs (`lynx-prepare calibrate`); the
k_l that minimise the sum of D_l(k_l), with 1 <= k_l <= K and their mean at most `mean_k`, are then fixed. The paper
searches by evolution; the problem separates by layer, so dynamic programming solves the same objective exactly.

Blind to the batch. Weights are the model's own on the k experts, as with `num_experts_per_tok`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from lynx_exp.routing.budgets import allocate
from lynx_exp.routing.calibration import Calibrated
from lynx_exp.routing.per_layer import PerLayer
from lynx_exp.routing.policies.top_k import TopK
from lynx_exp.routing.policy import Knob, Policy, at_least, between
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class Lexi(Calibrated):
    mean_k: float = 1.5
    """Experts of a token at most, mean over layers: 1..K. The paper's OLMoE setting is 100 over 16 layers, 6.25 of
    8."""

    color = "#8c8c8c"
    marker = ">"
    knob = Knob(parameter="mean_k", low=1.0, high="K", integer=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "mean_k", 1.0)

    def check(self, shape: ModelShape) -> None:
        between(self, "mean_k", 1.0, shape.top_k)
        if shape.top_k < 2:
            raise ValueError(f"{self.name}: needs a model with top-k of at least 2; this one has {shape.top_k}")

    def bind(self, shape: ModelShape) -> Policy:
        bound = super().bind(shape)
        assert isinstance(bound, Lexi)
        losses_LK = bound.facts.divergence
        per_layer = allocate(losses_LK, range(1, losses_LK.shape[1] + 1), floor(self.mean_k * len(losses_LK) + 1e-9))
        policies = tuple(
            TopK(k=k, min_batch=self.min_batch, weights=self.weights, k2=self.k2, protect=self.protect)
            for k in per_layer
        )
        return PerLayer(policies=policies, made_of=self)

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        raise RuntimeError(f"{self.name}: `bind` the policy to a model first")
