"""random_keep: every lane keeps experts drawn at random, anew in each layer and step: the floor that any selection
must beat.

The draw is a hash of (seed, layer, the lane's key, expert), so it repeats from its seed and does not depend on packing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_exp.routing.lanes import best_first, mask_of
from lynx_exp.routing.policy import LanePolicy, at_least, between
from lynx_exp.routing.types import RouterRule, Routing, StepContext

_LOW_32 = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash on int64 tensors; products stay below 2^63."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & _LOW_32
    return x ^ (x >> 16)


@dataclass(frozen=True, kw_only=True)
class RandomKeep(LanePolicy):
    keep_experts: int = 4
    """Experts that each lane keeps in each layer and step: K..E."""
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "keep_experts", 1)
        between(self, "seed", 0, 2**31 - 1)

    def check(self, num_experts: int, top_k: int) -> None:
        between(self, "keep_experts", top_k, num_experts)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        expert_E = torch.arange(routing.num_experts, device=step.key.device)
        lane_G1 = _mix(_mix(step.key & _LOW_32) ^ ((step.key >> 32) & _LOW_32))[:, None]
        layer_G1 = _mix(lane_G1 ^ (self.seed * 1_000_003 + step.layer & _LOW_32))
        draw_GE = _mix(layer_G1 ^ _mix(expert_E + 1))
        return mask_of(best_first(draw_GE)[:, : self.keep_experts], routing.num_experts)
