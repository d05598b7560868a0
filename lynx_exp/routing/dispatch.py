"""Which code runs a policy: the fused loops for CPUs, the kernels for CUDA, or its definition in torch.

The only file that knows all three. Importing it makes every policy that is called go through `select`.
"""

from __future__ import annotations

from lynx_exp.routing.backends.numba import fused
from lynx_exp.routing.backends.numba.fused.fused_plan import plan_of
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.ops.protect import keep_protected
from lynx_exp.routing.ops.weigh import OWN_WAY, weigh
from lynx_exp.routing.policy import Policy, acting_step, run_policies_by
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext

_PLAN = "_fused_plan"


def fused_plan(policy: Policy) -> fused.Plan | None:
    """The policy in the terms of the fused loops; None if they do not know it. Kept with the policy: it is asked for in
    every layer of every step."""
    kept = policy.__dict__
    if _PLAN not in kept:
        if policy.per_layer is not None:
            raise RuntimeError(f"{policy.name}: per_layer={policy.per_layer}: `bind` the policy to a model first")
        kept[_PLAN] = plan_of(policy)
    plan: fused.Plan | None = kept[_PLAN]
    return plan


def select(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
    """The policy's new routing, by the fastest code that serves this policy, rule and device."""
    plan = policy.__dict__[_PLAN] if _PLAN in policy.__dict__ else fused_plan(policy)  # a call less a layer
    new = None if plan is None else fused.select(plan, routing, step, rule)
    if new is None:
        new = _unfused(policy, routing, step, rule)
    if policy.protect is not None and new is not routing:
        new = _keep_protected(policy, routing, new, rule)
    return new if policy.weights in OWN_WAY or new is routing else _weigh(policy, routing, new, rule)


def _unfused(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing:
    acting, somewhere = acting_step(step, policy.min_batch)
    if not somewhere:
        return routing
    done = kernels.select(policy, routing, acting, rule) if kernels.chosen(routing.logits) else None
    return policy.route(routing, acting, rule) if done is None else done


def _keep_protected(policy: Policy, before: Routing, after: Routing, rule: RouterRule) -> Routing:
    """The new routing with the experts that the policy may not take from a token."""
    done = kernels.keep_protected(policy, before, after, rule) if kernels.chosen(before.logits) else None
    if done is not None:
        return done
    return keep_protected(before, after, policy.protected(before.num_experts, after.experts.device), rule)


def _weigh(policy: Policy, before: Routing, after: Routing, rule: RouterRule) -> Routing:
    """The same experts with the weights that the policy asks for."""
    done = kernels.weigh(policy, before, after, rule) if kernels.chosen(before.logits) else None
    return weigh(before, after, rule, policy.weights, policy.k2) if done is None else done


run_policies_by(select)
