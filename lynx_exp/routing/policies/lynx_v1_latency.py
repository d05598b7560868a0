"""lynx_v1_latency: keep the experts that the batch chooses most often (the latency-preserving variant of arXiv
2411.08982v1).

Only v1-era code could be read (`simple` in the vLLM 0.7.0 fork), so the mapping to the paper's name is inferred.
There ties are implementation-defined; here they break by the lane's summed router probability, then by index.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lynx_exp.routing.policy import Knob, LanePolicy, at_least, between, most_voted
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class LynxV1Latency(LanePolicy):
    keep_experts: int = 4
    """Experts that each lane keeps in each layer and step: K..E."""

    color = "#D55E00"
    marker = "s"
    knob = Knob(parameter="keep_experts", low="K", high="E")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "keep_experts", 1)

    def check(self, shape: ModelShape) -> None:
        super().check(shape)
        between(self, "keep_experts", shape.top_k, shape.num_experts)

    def keep(self, routing: Routing, step: StepContext, rule: RouterRule) -> Tensor:
        return most_voted(routing, step, rule, self.keep_experts)
