"""The fused kernels: the whole selection of a layer in one launch, or a few.

Policies of single rows have one launch (`by_row`). Of those that look at lanes, `coverage` has one program a lane
(`launches`): its greedy loop is serial. The kept sets `[G, E]` go through memory to a second launch, which spreads
blocks of rows over the device. In rounds (`in_rounds`) it is spread from the first, two launches a round. All others
(`spread`) have one launch where a step has few rows, and spread them where it has more: a launch that sums, with `lynx`
one that votes, and one that keeps and remaps.

Rows of all lanes are written; those of other phases, padding and small lanes (not `live`) as they were. Nothing here
waits for the device, and every launch depends on shapes alone, so a CUDA graph can hold it; run the policy once before
the capture, to compile and to bring its parameters to the device.

What falls back to torch (`select` returns None): policies that neither `plans` nor `by_row` knows; more than MOST_ROWS
rows, which is prefill, where torch's own kernels are well fed; more than MOST_EXPERTS experts; `coverage` in rounds
for routers with groups.

T token rows, E experts, K top-k, G lanes, W columns afterwards, BT/BE/BK/BW their tile sizes.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from triton import JITFunction, next_power_of_2

from lynx_exp.routing.backends.triton.kernels import by_row, fallback, in_rounds
from lynx_exp.routing.backends.triton.kernels.choose import MOST_EXPERTS, MOST_ROWS
from lynx_exp.routing.backends.triton.kernels.hashes import LAYER_FACTOR, signed
from lynx_exp.routing.backends.triton.kernels.launch_plans import COVERAGE, Plan, plan_of
from lynx_exp.routing.backends.triton.kernels.launch_sizes import (
    AT_ONCE,
    BLOCKS_AT_ONCE,
    MOST_AT_ONCE,
    Sizes,
    lane_blocks,
    row_blocks,
)
from lynx_exp.routing.backends.triton.kernels.launches import lane_kernel, rows_kernel
from lynx_exp.routing.backends.triton.kernels.spread import lane_block_kernel
from lynx_exp.routing.backends.triton.kernels.sums import BINNED, DRAWN
from lynx_exp.routing.backends.triton.kernels.tile_parts import sum_kernel, vote_kernel
from lynx_exp.routing.policies.random_keep import RandomKeep
from lynx_exp.routing.policies.sere import Sere
from lynx_exp.routing.policy import Policy
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext


@cache  # never emptied: a CUDA graph may hold the address
def _on_device(numbers: tuple[float, float, float], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def select(policy: Policy, routing: Routing, step: StepContext, rule: RouterRule) -> Routing | None:
    """What `policy.route(routing, step, rule)` returns; None if these kernels do not serve it."""
    rows, experts, top_k = len(routing.logits), routing.num_experts, routing.top_k
    if not 0 < rows <= MOST_ROWS or experts > MOST_EXPERTS:
        return None
    plan = plan_of(policy, experts, top_k)
    row_plan = by_row.plan_of(policy) if plan is None else None
    if plan is None and row_plan is None:
        fallback.without_kernel(policy, routing)
        return None
    if isinstance(lane_kernel, JITFunction) and not routing.logits.is_cuda:
        raise RuntimeError("on a CPU the kernels run only where TRITON_INTERPRET=1 was set beforehand")
    shape = rows, experts, top_k
    with torch.cuda.device_of(routing.logits):
        if row_plan is not None:
            numbers = _on_device((row_plan.number, 0.0, 0.0), routing.logits.device)
            return by_row.run(row_plan, policy, routing, step, rule, row_blocks(*shape), numbers)
        assert plan is not None
        numbers = _on_device(plan.numbers, routing.logits.device)
        if plan.rounds is not None:
            if rule.grouped:
                return None
            return in_rounds.run(plan, routing, step, rule, lane_blocks(*shape), numbers)
        if plan.keep == COVERAGE:
            return _coverage(plan, routing, step, rule, row_blocks(*shape), numbers)
        return _blocks(plan, policy, routing, step, rule, lane_blocks(*shape), numbers)


def _coverage(
    plan: Plan,
    routing: Routing,
    step: StepContext,
    rule: RouterRule,
    sizes: Sizes,
    numbers: Tensor,
) -> Routing:
    rows, block_k = sizes["num_rows"], next_power_of_2(sizes["K"])
    own_experts, own_weights = routing.experts.contiguous(), routing.weights.contiguous()
    new_experts, new_weights = torch.empty_like(own_experts), torch.empty_like(own_weights)
    shared = {
        "num_rows": rows,
        "choice_ptr": routing.choice(rule).contiguous(),
        "experts_ptr": own_experts,
        "lane_ptr": step.lane.contiguous(),
        "live_ptr": step.live.contiguous(),
        "kept_ptr": numbers.new_empty(step.num_lanes, sizes["E"], dtype=torch.int8),
        "E": sizes["E"],
        "K": sizes["K"],
        "BE": sizes["BE"],
        "BK": block_k,
        "num_stages": 1,
        "enable_fp_fusion": False,
    }
    few, many = AT_ONCE
    some = rows <= many * step.num_lanes  # on average: a lane of more is served in a loop, by few warps
    at_once = many if few * step.num_lanes < rows and some else few
    at_once = max(1, min(at_once, MOST_AT_ONCE // sizes["BE"]))
    lane_kernel[(step.num_lanes,)](
        **shared,
        view_ptr=routing.mass(rule).contiguous(),
        numbers_ptr=numbers,
        state_ptr=numbers.new_empty(rows, block_k + 2),
        first=plan.first,
        budget=plan.budget,
        VARIANT=plan.variant,
        BT=at_once,
        BALL=next_power_of_2(rows),
        BLOOP=max(1, min(16, 2048 // sizes["BE"])),
        num_warps=16 if at_once == many else 4,
    )
    rows_kernel[(-(-rows // sizes["BT"]),)](
        **shared,
        scores_ptr=routing.scores(rule).contiguous(),
        weights_ptr=own_weights,
        scale_ptr=numbers if rule.expert_scale is None else rule.expert_scale.float(),
        out_experts_ptr=new_experts,
        out_weights_ptr=new_weights,
        scaling=float(rule.scaling),
        RENORMALIZE=rule.renormalize,
        SCALED=rule.expert_scale is not None,
        BT=sizes["BT"],
        num_warps=sizes["num_warps"],
    )
    return Routing(logits=routing.logits, experts=new_experts, weights=new_weights)


def _blocks(
    plan: Plan,
    policy: Policy,
    routing: Routing,
    step: StepContext,
    rule: RouterRule,
    sizes: Sizes,
    numbers: Tensor,
) -> Routing:
    own_experts, own_weights = routing.experts.contiguous(), routing.weights.contiguous()
    substitutes = isinstance(policy, Sere)
    slots = sizes["K"] if plan.slots is None else plan.slots
    width = max(slots, sizes["K"])
    new_experts = own_experts.new_empty(len(own_experts), width)
    new_weights = own_weights if substitutes else own_weights.new_empty(len(own_weights), width)
    blocks = -(-sizes["num_rows"] // sizes["BT"])
    spread, grid = blocks > 1, (blocks, step.num_lanes)
    at_once = min(BLOCKS_AT_ONCE, next_power_of_2(blocks))
    rows = {
        **sizes,
        "view_ptr": _view(plan, routing, rule, numbers),
        "lane_ptr": step.lane.contiguous(),
        "live_ptr": step.live.contiguous(),
        "numbers_ptr": numbers,
        "VARIANT": plan.variant,
    }
    asks = {
        "choice_ptr": routing.choice(rule).contiguous(),
        "experts_ptr": own_experts,
        "weights_ptr": own_weights,
        "asked": 0 if plan.own_first else plan.first,
        "KEEP": plan.keep,
    }
    sums = numbers  # what is not used still has to point somewhere
    if spread and plan.keep != DRAWN.value:
        sums = own_experts.new_empty(*reversed(grid), 2, sizes["E"])
        sum_kernel[grid](**rows, **asks, sums_ptr=sums)
        if plan.keep == BINNED.value:
            vote_kernel[grid](**rows, sums_ptr=sums, BN=at_once)
    seed = policy.seed if isinstance(policy, RandomKeep) else 0
    lane_block_kernel[grid](
        **rows,
        **asks,
        scores_ptr=numbers if substitutes else routing.scores(rule).contiguous(),
        scale_ptr=numbers if rule.expert_scale is None else rule.expert_scale.float(),
        key_ptr=step.key.contiguous(),
        alike_ptr=policy.similarities(own_experts.device)[step.layer] if isinstance(policy, Sere) else numbers,
        sums_ptr=sums,
        out_experts_ptr=new_experts,
        out_weights_ptr=new_weights,
        scaling=float(rule.scaling),
        first=plan.first,
        budget=plan.budget,
        limit=2**31 - 1 if plan.limit is None else plan.limit,
        salt=signed(seed * LAYER_FACTOR + step.layer),
        SPREAD=spread,
        SUBSTITUTES=substitutes,
        SLOTS=slots,
        W=width,
        OWN_FIRST=plan.own_first,
        RANKED=plan.ranked,
        RENORMALIZE=rule.renormalize,
        SCALED=rule.expert_scale is not None,
        BN=at_once,
        BW=next_power_of_2(width),
    )
    return Routing(logits=routing.logits, experts=new_experts, weights=new_weights)


def _view(plan: Plan, routing: Routing, rule: RouterRule, unused: Tensor) -> Tensor:
    if plan.view == "none":
        return unused
    view = {"mass": routing.mass, "scores": routing.scores, "affinity": routing.affinity}[plan.view]
    return view(rule).contiguous()
