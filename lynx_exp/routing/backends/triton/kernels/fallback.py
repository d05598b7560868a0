"""Which selection kernels could not be compiled or launched in this process, and why: those policies run in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from lynx_exp.routing.policy import Policy
    from lynx_exp.routing.types import Routing

_REASON_LENGTH = 200


class Form(NamedTuple):
    """What a kernel is compiled for."""

    policy: str
    num_experts: int
    top_k: int
    dtype: torch.dtype
    device: torch.device
    work: str
    """What it does of the policy: selects, protects, or weighs."""


_failed: dict[Form, str] = {}
_without: dict[tuple[str, int, int], str] = {}
"""(label, E, K) of policies that have no kernel -> their names."""


def form_of(policy: Policy, routing: Routing, work: str = "selects") -> Form:
    logits = routing.logits
    return Form(policy.name, routing.num_experts, routing.top_k, logits.dtype, logits.device, work)


def failed(form: Form) -> bool:
    return bool(_failed) and form in _failed


def remember(form: Form, reason: str) -> None:
    _failed[form] = reason


def reason_of(error: Exception) -> str:
    """One line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_REASON_LENGTH].rstrip(": ")


def without_kernel(policy: Policy, routing: Routing) -> None:
    """Remember that there is none for this policy, or not under its parameters."""
    _without[policy.label, routing.num_experts, routing.top_k] = policy.name


def fallback_notes(policy: Policy) -> list[str]:
    """One line for each form in which the policy, or one of its layers' policies, has run in torch since it has no
    kernel, or its kernel failed."""
    parts = (policy, *getattr(policy, "policies", ()))
    names, labels = {part.name for part in parts}, {part.label for part in parts}
    return [
        f"{form.policy} {form.work} in torch ({form.num_experts} experts, top-{form.top_k}): its kernel does not run "
        f"here: {reason}"
        for form, reason in _failed.items()
        if form.policy in names
    ] + [
        f"{name} selects in torch ({experts} experts, top-{top_k}): it has no kernel"
        for (label, experts, top_k), name in _without.items()
        if label in labels
    ]
