"""random_keep: every lane keeps experts drawn at random, anew in each layer and step: the floor that any selection
must beat.

The draw is a hash of (seed, layer, the lane's key, expert), so it repeats from its seed and does not depend on packing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_exp.routing.ops.draws import LOW_32, mix, mix_64
from lynx_exp.routing.ops.lanes import best_mask
from lynx_exp.routing.policy import Knob, LanePolicy, at_least, between
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext

_LAYERS_AT_ONCE = 16
"""Layers whose draws are made together: one forward pass then pays for the hashing once, not in every layer."""


@dataclass(frozen=True, kw_only=True)
class RandomKeep(LanePolicy):
    keep_experts: int = 4
    """Experts that each lane keeps in each layer and step: K..E."""
    seed: int = 0
    """Seed of the draw."""

    purpose = "chance"
    color = "#56B4E9"
    marker = "D"
    knob = Knob(parameter="keep_experts", low="K", high="E")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "keep_experts", 1)
        between(self, "seed", 0, 2**31 - 1)

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        between(self, "keep_experts", shape.top_k, shape.num_experts)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        block, layer = divmod(step.layer, _LAYERS_AT_ONCE)
        name = f"random {self.seed} {block}"
        if name not in step.shared:
            step.shared[name] = self._draws(step.key, block * _LAYERS_AT_ONCE, routing.num_experts)
        draw_GE = step.shared[name][layer]
        return best_mask(draw_GE, draw_GE, self.keep_experts)

    def _draws(self, key_G: Tensor, first_layer: int, num_experts: int) -> Tensor:
        """`[layers, G, E]` int64 hashes."""
        layer_L11 = torch.arange(first_layer, first_layer + _LAYERS_AT_ONCE, device=key_G.device)[:, None, None]
        expert_E = mix(torch.arange(1, num_experts + 1, device=key_G.device))
        return mix(mix(mix_64(key_G)[:, None] ^ (self.seed * 1_000_003 + layer_L11 & LOW_32)) ^ expert_E)
