"""`policy.protect=calibrated`: the super experts that the model's calibration names, for each layer its own."""

from __future__ import annotations

from dataclasses import replace

from lynx_exp.routing.calibration import AUTO, Calibrated, NotMeasured, load_calibration
from lynx_exp.routing.ops.protect import super_experts
from lynx_exp.routing.per_layer import PerLayer
from lynx_exp.routing.policy import CALIBRATED, Policy
from lynx_exp.routing.types import ModelShape


def asks_calibration(policy: Policy) -> bool:
    """Whether which experts it protects is to come from the model's calibration."""
    return any(part.protect == CALIBRATED for part in getattr(policy, "policies", (policy,)))


def with_experts_named(policy: Policy, shape: ModelShape) -> Policy:
    """The policy with lists of experts in place of `protect=calibrated`; itself, where it does not say that.

    Raises ValueError, naming the field, where this model has no calibration that names them.
    """
    if not asks_calibration(policy):
        return policy
    parts = policy.policies if isinstance(policy, PerLayer) else (policy,)
    source = next(part for part in parts if part.protect == CALIBRATED)
    facts = source._facts if isinstance(source, Calibrated) else None
    if facts is None:
        where = source.calibration if isinstance(source, Calibrated) else AUTO
        facts = load_calibration(f"{policy.name}: protect=calibrated", where, shape)
    if facts.largest is None:
        raise NotMeasured(
            f"{policy.name}: protect=calibrated: this model's calibration was made before it held the experts' largest "
            "outputs; make it again with `lynx-prepare calibrate`"
        )
    experts = super_experts(facts.largest)
    each = policy.policies if isinstance(policy, PerLayer) else (policy,) * len(experts)
    if len(each) != len(experts):
        raise ValueError(
            f"{policy.name}: parameters for {len(each)} layers; this model has {len(experts)} layers with a router"
        )
    made_of = policy.made_of if isinstance(policy, PerLayer) else policy
    policies = tuple(_naming(part, ids) for part, ids in zip(each, experts, strict=True))
    return PerLayer(policies=policies, made_of=made_of)


def _naming(policy: Policy, ids: tuple[int, ...]) -> Policy:
    if policy.protect != CALIBRATED:
        return policy
    named = replace(policy, protect=ids or None)
    if isinstance(named, Calibrated) and isinstance(policy, Calibrated) and policy._facts is not None:
        return named.calibrated(policy._facts)
    return named
