"""Fused selection: score, keep and remap in one launch, or two. Needs Triton, and only once it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_exp.routing.kernels.choose import Kernel, chosen, current_kernel, kernel, set_kernel

if TYPE_CHECKING:
    from lynx_exp.routing.policy import Policy
    from lynx_exp.routing.rule import RouterRule
    from lynx_exp.routing.types import Routing, StepContext

__all__ = ["Kernel", "chosen", "current_kernel", "kernel", "select", "set_kernel"]


def select(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing | None:
    """What `policy.route` returns, by the fused kernels; None if they do not serve this policy or this shape."""
    from lynx_exp.routing.kernels.selection import select as fused

    return fused(policy, routing, step, rule)
