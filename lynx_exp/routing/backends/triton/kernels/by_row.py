"""Policies of single rows, in the terms of the kernels of `rows`, and how those are launched.

T token rows, E experts, K top-k.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from triton import next_power_of_2

from lynx_exp.routing.backends.triton.kernels.hashes import LAYER_FACTOR, signed
from lynx_exp.routing.backends.triton.kernels.launch_sizes import Sizes
from lynx_exp.routing.backends.triton.kernels.row_programs import (
    BEYOND,
    COVERED,
    ONE,
    WEAK,
    drop_kernel,
    reassign_kernel,
    replace_kernel,
)
from lynx_exp.routing.policies.deny_rank import DenyRank
from lynx_exp.routing.policies.keep_ranks import KeepRanks
from lynx_exp.routing.policies.min_p import MinP
from lynx_exp.routing.policies.naee import Naee
from lynx_exp.routing.policies.reassign import Reassign
from lynx_exp.routing.policies.static_mask import StaticMask
from lynx_exp.routing.policies.top_k import TopK
from lynx_exp.routing.policies.top_p import TopP
from lynx_exp.routing.policy import Policy
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """A policy for `rows`."""

    kernel: Literal["drop", "replace", "reassign"] = "drop"
    drop: int = 0
    """Which slots go."""
    rank: int = 0
    """top_k: k. keep_ranks: ranks. deny_rank: rank. reassign: first_rank."""
    keep_mass: bool = True
    number: float = 0.0
    """What a definition uses as float64. top_p: p. reassign: fraction."""


@cache
def plan_of(policy: Policy) -> RowPlan | None:
    """None for a policy that the kernels do not know. A subclass may define something else."""
    if type(policy) not in (TopK, KeepRanks, DenyRank, MinP, Naee, TopP, Reassign, StaticMask):
        return None
    match policy:
        case TopK():
            return RowPlan(drop=BEYOND.value, rank=policy.k, keep_mass=False)
        case KeepRanks():
            return RowPlan(drop=BEYOND.value, rank=policy.ranks)
        case DenyRank():
            return RowPlan(kernel="replace" if policy.mode == "replace" else "drop", drop=ONE.value, rank=policy.rank)
        case MinP() | Naee():
            return RowPlan(drop=WEAK.value)
        case TopP():
            return RowPlan(drop=COVERED.value, number=policy.p)
        case StaticMask():
            return RowPlan(kernel="replace")
        case Reassign():
            return RowPlan(kernel="reassign", rank=policy.first_rank, number=policy.fraction)
    raise AssertionError(policy)


@cache  # never emptied: a CUDA graph may hold the address
def _same_ratio(ratio: float, top_k: int, device: torch.device) -> Tensor:
    return torch.full((top_k,), ratio, device=device)


def run(
    plan: RowPlan,
    policy: Policy,
    routing: Routing,
    step: StepContext,
    rule: RouterRule,
    sizes: Sizes,
    numbers: Tensor,
) -> Routing:
    """One launch; `numbers` are those of the plan, on the device, and what is not used points there."""
    own_experts, own_weights = routing.experts.contiguous(), routing.weights.contiguous()
    new_experts = torch.empty_like(own_experts)
    new_weights = torch.empty_like(own_weights)
    grid = (-(-sizes["num_rows"] // sizes["BT"]),)
    shared = {
        **sizes,
        "experts_ptr": own_experts,
        "weights_ptr": own_weights,
        "scale_ptr": numbers if rule.expert_scale is None else rule.expert_scale.float(),
        "out_experts_ptr": new_experts,
        "out_weights_ptr": new_weights,
        "SCALED": rule.expert_scale is not None,
        "BK": next_power_of_2(sizes["K"]),
    }
    if plan.kernel == "drop":
        ratio = numbers
        if isinstance(policy, MinP):
            ratio = _same_ratio(policy.ratio, sizes["K"], own_experts.device)
        elif isinstance(policy, Naee):
            ratio = policy.ratios(own_experts.device)[step.layer]
        drop_kernel[grid](
            **shared,
            mass_ptr=routing.scores(rule).contiguous() if plan.drop in (WEAK.value, COVERED.value) else numbers,
            ratio_ptr=ratio,
            numbers_ptr=numbers,
            live_ptr=step.live.contiguous(),
            rank=plan.rank,
            DROP=plan.drop,
            REWEIGHS=rule.renormalize or plan.keep_mass,
        )
    elif plan.kernel == "replace":
        replace_kernel[grid](
            **shared,
            choice_ptr=routing.choice(rule).contiguous(),
            scores_ptr=routing.scores(rule).contiguous(),
            mask_ptr=policy.kept(own_experts.device)[step.layer] if isinstance(policy, StaticMask) else numbers,
            live_ptr=step.live.contiguous(),
            scaling=float(rule.scaling),
            rank=plan.rank,
            MASKED=isinstance(policy, StaticMask),
            RENORMALIZE=rule.renormalize,
        )
    else:
        assert isinstance(policy, Reassign)
        own = policy.new_weight == "own"
        reassign_kernel[grid](
            **shared,
            choice_ptr=routing.choice(rule).contiguous(),
            scores_ptr=routing.scores(rule).contiguous() if own else numbers,
            numbers_ptr=numbers,
            lane_ptr=step.lane.contiguous(),
            key_ptr=step.key.contiguous(),
            row_ptr=step.row.contiguous(),
            touched_ptr=policy.touched(routing, step, rule).contiguous(),  # the variance is torch's own, to the bit
            scaling=float(rule.scaling),
            first_rank=plan.rank,
            seed=policy.seed,
            salt=signed(step.layer * LAYER_FACTOR),
            OWN=own,
            RENORMALIZE=rule.renormalize,
        )
    return Routing(logits=routing.logits, experts=new_experts, weights=new_weights)
