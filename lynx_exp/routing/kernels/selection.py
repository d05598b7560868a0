"""The fused kernels: the whole selection of a layer in one launch, or two.

One program a lane (grid G): it walks over its rows to score the experts, keeps a set of them, and, where lanes are
small, walks over its rows once more to remap them: one launch. A lane of many rows would remap on a single
multiprocessor, so there the kept sets `[G, E]` go through memory to a second launch, which spreads blocks of rows over
the device. The greedy loop of `coverage` is serial, and stays in the lane's program.

Sums are int64 fixed point and choices compare what the torch definitions compare, so experts are equal to theirs. The
scores, and what a bias or groups make of them, are the rule's own, computed by torch before the launch: one softmax for
a plain router.

Rows of all lanes are written; those of other phases, padding and small lanes (not `live`) as they were. Nothing here
waits for the device, and every launch depends on shapes alone, so a CUDA graph can hold it; run the policy once before
the capture, to compile and to bring its parameters to the device.

What falls back to torch (`select` returns None): policies other than those of `_plan`; more than MOST_ROWS rows, which
is prefill, where torch's own kernels are well fed; more than MOST_EXPERTS experts.

T token rows, E experts, K top-k, G lanes, W columns afterwards, BT/BE/BK/BW their tile sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Literal

import torch
from torch import Tensor
from triton import JITFunction, next_power_of_2

from lynx_exp.routing.kernels.launches import COVERAGE, LYNX, OEA, XSHARE, lane_kernel, rows_kernel
from lynx_exp.routing.policies.coverage import FLOOR, Coverage
from lynx_exp.routing.policies.lynx import Lynx
from lynx_exp.routing.policies.no_drop import NoDrop
from lynx_exp.routing.policies.oea import Oea
from lynx_exp.routing.policies.xshare import XShare
from lynx_exp.routing.policy import Policy
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext

MOST_ROWS, MOST_EXPERTS = 1024, 1024
ROWS_A_LAUNCH = 16
"""Rows of a lane, on average, up to which its program remaps them itself. Not measured yet."""
TILE = 2048
"""Values of a tile: 16 for each of the 128 threads of a program, which leaves float64 work in registers."""

MOST_FACTORS = 8
"""Powers up to which `coverage` multiplies instead of taking logarithms."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A policy in the kernels' terms."""

    keep: int
    view: Literal["affinity", "mass"]
    """Of the routing: what is summed or binned."""
    variant: int = 0
    """lynx: 1 for whole bins. oea: 1 for p below 1. coverage: 0 for log utility, n for mass with power n, -1 for mass
    with another power."""
    first: int = 0
    """oea: k0. xshare: warm_up. coverage: guarantee."""
    budget: int = 0
    limit: int | None = None
    """xshare: max_batch. oea: max_rank."""
    own_first: bool = False
    slots: int | None = None
    numbers: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Parameters that the definitions use as float64; a float handed to a kernel would be float32. lynx: alpha, lowest
    bin. oea: p. coverage: least gain per row, floor, power."""


@cache
def _plan(policy: Policy, num_experts: int) -> Plan | None:
    if type(policy) not in (NoDrop, Lynx, Oea, XShare, Coverage):  # a subclass may define something else
        return None
    match policy:
        case NoDrop():
            return Plan(keep=XSHARE.value, view="mass", budget=num_experts)
        case Lynx():
            lowest = -inf if policy.beta is None else -float(policy.beta)
            return Plan(
                keep=LYNX.value,
                view="affinity",
                variant=int(policy.bins == "ceil"),
                numbers=(policy.alpha, lowest, 0.0),
            )
        case Oea():
            return Plan(
                keep=OEA.value,
                view="mass",
                variant=int(policy.p < 1.0),
                first=policy.k0,
                limit=policy.max_rank,
                slots=policy.k_max,
                numbers=(policy.p, 0.0, 0.0),
            )
        case XShare():
            return Plan(
                keep=XSHARE.value,
                view="mass" if policy.score == "prob" else "affinity",
                first=policy.warm_up,
                budget=policy.budget,
                limit=policy.max_batch,
                own_first=policy.warm_up_for == "token" and policy.warm_up > 0,
            )
        case Coverage():
            power = 1.0 if policy.utility == "log" else policy.power
            mass = int(power) if power in range(1, MOST_FACTORS + 1) else -1
            return Plan(
                keep=COVERAGE.value,
                view="mass",
                variant=0 if policy.utility == "log" else mass,
                first=policy.guarantee,
                budget=num_experts if policy.budget is None else policy.budget,
                numbers=(-1.0 if policy.tolerance is None else policy.tolerance**power, FLOOR, power),
            )
    raise AssertionError(policy)


@cache  # never emptied: a CUDA graph may hold the address
def _on_device(numbers: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def select(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing | None:
    """What `policy.route(routing, step, rule)` returns; None if these kernels do not serve it."""
    rows, experts, top_k = len(routing.logits), routing.num_experts, routing.top_k
    plan = _plan(policy, experts)
    if plan is None or not 0 < rows <= MOST_ROWS or experts > MOST_EXPERTS:
        return None
    if isinstance(lane_kernel, JITFunction) and not routing.logits.is_cuda:
        raise RuntimeError("kernel=triton: on a CPU the kernels run only where TRITON_INTERPRET=1 was set beforehand")
    view = routing.mass(rule) if plan.view == "mass" else routing.affinity(rule)
    choice, scores = routing.choice(rule).contiguous(), routing.scores(rule).contiguous()
    own_experts, own_weights = routing.experts.contiguous(), routing.weights.contiguous()
    numbers = _on_device(plan.numbers, choice.device)
    slots = top_k if plan.slots is None else plan.slots
    width = max(slots, top_k)
    block_experts, block_k = next_power_of_2(experts), next_power_of_2(top_k)
    new_experts = own_experts.new_empty(rows, width)
    new_weights = own_weights.new_empty(rows, width)
    together = rows <= ROWS_A_LAUNCH * step.num_lanes
    # what is not used still has to point somewhere
    state = numbers.new_empty(rows, block_k + 2) if plan.keep == COVERAGE.value else numbers
    kept = numbers if together else numbers.new_empty(step.num_lanes, experts, dtype=torch.int8)
    tensors = {
        "choice_ptr": choice,
        "scores_ptr": scores,
        "experts_ptr": own_experts,
        "weights_ptr": own_weights,
        "scale_ptr": numbers if rule.expert_scale is None else rule.expert_scale.float(),
        "lane_ptr": step.lane.contiguous(),
        "live_ptr": step.live.contiguous(),
        "kept_ptr": kept,
        "out_experts_ptr": new_experts,
        "out_weights_ptr": new_weights,
    }
    rest = {
        "scaling": float(rule.scaling),
        "num_rows": rows,
        "first": plan.first,
        "limit": 2**31 - 1 if plan.limit is None else plan.limit,
        "E": experts,
        "K": top_k,
        "SLOTS": slots,
        "W": width,
        "OWN_FIRST": plan.own_first,
        "RANKED": plan.keep == OEA.value and plan.limit is not None,
        "RENORMALIZE": rule.renormalize,
        "SCALED": rule.expert_scale is not None,
        "BT": min(16, max(1, TILE // block_experts)),
        "BE": block_experts,
        "BW": next_power_of_2(width),
        "num_warps": 4,
        "num_stages": 1,
        "enable_fp_fusion": False,  # the torch definitions round after each operation
    }
    with torch.cuda.device_of(choice):
        lane_kernel[(step.num_lanes,)](
            **tensors,
            **rest,
            view_ptr=view.contiguous(),
            numbers_ptr=numbers,
            state_ptr=state,
            budget=plan.budget,
            KEEP=plan.keep,
            VARIANT=plan.variant,
            REMAPS=together,
            BK=block_k,
        )
        if not together:
            rows_kernel[(-(-rows // rest["BT"]),)](**tensors, **rest)
    return Routing(logits=routing.logits, experts=new_experts, weights=new_weights)
