"""static_mask: the same experts of a layer serve every decode step: those that mattered most on calibration text.

Experts are ranked once, by REAP's criterion (arXiv 2510.13999, equation 9): the mean, over the tokens routed to an
expert, of their combine weight times the norm of its output. The best `keep_experts` of each layer serve decode, while
prompts are read with all of them (SlimWise, arXiv 2609.34117; its abstract was read, which also has the pruned model
distilled: not here). So nothing is decided at run time, and no row looks at another: what every batch-aware policy has
to beat at as many active experts.

Each token runs its K best of the kept experts; weights follow the rule, as under the batch-aware policies. Kept experts
that no token of a step wants are not read. With `phases=both` it is plain pruning. Equal saliencies go to the lower
expert; one that no token of the text was routed to comes last. Saliencies come from `lynx-prepare calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_exp.routing.calibration import Calibrated, NotMeasured
from lynx_exp.routing.ops.lanes import mask_of
from lynx_exp.routing.ops.remap import restrict
from lynx_exp.routing.policy import Knob, Policy, at_least, between, without_groups
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class StaticMask(Calibrated):
    keep_experts: int = 4
    """Experts of each layer that stay: K..E."""

    color = "#8c8c8c"
    marker = "P"
    knob = Knob(parameter="keep_experts", low="K", high="E")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "keep_experts", 1)

    def check(self, shape: ModelShape) -> None:
        without_groups(self, shape)
        between(self, "keep_experts", shape.top_k, shape.num_experts)

    def bind(self, shape: ModelShape) -> Policy:
        bound = super().bind(shape)
        assert isinstance(bound, StaticMask)
        if bound.facts.saliency is None:
            raise NotMeasured(
                f"{self.name}: calibration={self.calibration}: was made before it held how much each expert matters; "
                "make it again with `lynx-prepare calibrate`"
            )
        return bound

    def kept(self, device: torch.device) -> Tensor:
        """`[L, E]` bool: the experts that stay."""
        masks: dict[torch.device, Tensor] = self.__dict__.setdefault("_kept", {})
        if device not in masks:
            assert self.facts.saliency is not None
            order_LE = self.facts.saliency.argsort(dim=-1, descending=True, stable=True)
            masks[device] = mask_of(order_LE[:, : self.keep_experts], order_LE.shape[-1]).to(device)
        return masks[device]

    def route(self, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
        kept_1E = self.kept(routing.experts.device)[step.layer, None]
        return restrict(routing, kept_1E, torch.zeros_like(step.lane), step.live, rule)
