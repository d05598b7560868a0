"""The science: a policy maps the routing of a step to a new routing. Needs torch and safetensors only."""

from lynx_exp.routing import dispatch as _dispatch  # noqa: F401  # sets how policies run
from lynx_exp.routing.build import build_policy, policy_names
from lynx_exp.routing.calibration import Calibrated, Calibration
from lynx_exp.routing.ops.lanes import best_mask, lane_sum
from lynx_exp.routing.per_layer import PerLayer, layer_range
from lynx_exp.routing.policy import Knob, LanePolicy, Phased, Policy
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import ModelShape, Phase, Phases, Routing, StepContext

__all__ = [
    "Calibrated",
    "Calibration",
    "Knob",
    "LanePolicy",
    "ModelShape",
    "PerLayer",
    "Phase",
    "Phased",
    "Phases",
    "Policy",
    "RouterRule",
    "Routing",
    "StepContext",
    "best_mask",
    "build_policy",
    "lane_sum",
    "layer_range",
    "policy_names",
]
