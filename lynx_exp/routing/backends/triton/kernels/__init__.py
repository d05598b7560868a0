"""Fused selection: score, keep and remap in one launch, or two. Needs Triton, and only once it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lynx_exp.routing.backends.triton.kernels import fallback
from lynx_exp.routing.backends.triton.kernels.choose import Kernel, chosen, current_kernel, kernel, set_kernel
from lynx_exp.routing.backends.triton.kernels.fallback import fallback_notes

if TYPE_CHECKING:
    from lynx_exp.routing.policy import Policy
    from lynx_exp.routing.rule import RouterRule
    from lynx_exp.routing.types import Routing, StepContext

__all__ = ["Kernel", "chosen", "current_kernel", "fallback_notes", "kernel", "select", "set_kernel"]


def select(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing | None:
    """What `policy.route` returns, by the fused kernels; None if they do not serve this policy or this shape, or have
    failed here (`fallback_notes` says why). RuntimeError, with the reason, if they fail under `kernel=triton`."""
    form = fallback.form_of(policy, routing)
    if fallback.failed(form) and current_kernel() != "triton":
        return None
    try:
        from lynx_exp.routing.backends.triton.kernels.selection import select as fused

        return fused(policy, routing, step, rule)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler fails in many ways
        reason = fallback.reason_of(error)
        if current_kernel() == "triton":
            raise RuntimeError(f"kernel=triton: {policy.name}: its kernel does not run here: {reason}") from error
        fallback.remember(form, reason)
        return None
