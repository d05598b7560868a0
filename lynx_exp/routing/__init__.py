"""The science: a policy maps the routing of a step to a new routing. torch only."""

from lynx_exp.routing.build import build_policy, policy_names
from lynx_exp.routing.policy import LanePolicy, Phased, Phases, Policy
from lynx_exp.routing.types import RouterRule, Routing, StepContext

__all__ = [
    "LanePolicy",
    "Phased",
    "Phases",
    "Policy",
    "RouterRule",
    "Routing",
    "StepContext",
    "build_policy",
    "policy_names",
]
