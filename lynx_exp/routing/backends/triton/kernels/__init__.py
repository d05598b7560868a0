"""Fused selection: score, keep and remap in one launch, or two. Needs Triton, and only once it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from lynx_exp.routing.backends.triton.kernels import fallback
from lynx_exp.routing.backends.triton.kernels.choose import (
    MOST_EXPERTS,
    MOST_ROWS,
    Kernel,
    chosen,
    current_kernel,
    kernel,
    set_kernel,
)
from lynx_exp.routing.backends.triton.kernels.fallback import fallback_notes
from lynx_exp.routing.ops.weigh import denominator_of

if TYPE_CHECKING:
    from lynx_exp.routing.policy import Policy
    from lynx_exp.routing.rule import RouterRule
    from lynx_exp.routing.types import Routing, StepContext

__all__ = [
    "Kernel",
    "chosen",
    "current_kernel",
    "fallback_notes",
    "keep_protected",
    "kernel",
    "select",
    "set_kernel",
    "weigh",
]


def select(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing | None:
    """What `policy.route` returns, by the fused kernels; None if they do not serve this policy or this shape, or have
    failed here (`fallback_notes` says why). RuntimeError, with the reason, if they fail under `kernel=triton`."""

    def fused() -> Routing | None:
        from lynx_exp.routing.backends.triton.kernels.selection import select as fused

        return fused(policy, routing, step, rule)

    return _unless_failed(policy, fallback.form_of(policy, routing), fused)


def weigh(policy: Policy, before: Routing, after: Routing, rule: RouterRule) -> Routing | None:
    """What `ops.weigh.weigh` returns for the policy, by a kernel; None as `select` has it."""
    if not 0 < len(before.logits) <= MOST_ROWS or before.num_experts > MOST_EXPERTS:
        return None

    def fused() -> Routing:
        from lynx_exp.routing.backends.triton.kernels.weighing import weigh

        return weigh(before, after, rule, denominator_of(policy.weights, policy.k2, before.top_k))

    return _unless_failed(policy, fallback.form_of(policy, before, "weighs"), fused)


def keep_protected(policy: Policy, before: Routing, after: Routing, rule: RouterRule) -> Routing | None:
    """What `ops.protect.keep_protected` returns for the policy, by a kernel; None as `select` has it."""
    if not 0 < len(before.logits) <= MOST_ROWS or before.num_experts > MOST_EXPERTS:
        return None

    def fused() -> Routing:
        from lynx_exp.routing.backends.triton.kernels.protecting import keep_protected

        return keep_protected(before, after, policy.protected(before.num_experts, after.experts.device), rule)

    return _unless_failed(policy, fallback.form_of(policy, before, "protects"), fused)


def _unless_failed(policy: Policy, form: fallback.Form, run: Callable[[], Routing | None]) -> Routing | None:
    if fallback.failed(form) and current_kernel() != "triton":
        return None
    try:
        return run()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler fails in many ways
        reason = fallback.reason_of(error)
        if current_kernel() == "triton":
            raise RuntimeError(f"kernel=triton: {policy.name}: its kernel does not run here: {reason}") from error
        fallback.remember(form, reason)
        return None
