"""The launches of `rounds`: 2 R + 1 kernels, one more with a guarantee, and two that clear what they add to.

T token rows, E experts, K top-k, G lanes, R rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton import next_power_of_2

from lynx_exp.routing.backends.triton.kernels.launch_plans import Plan
from lynx_exp.routing.backends.triton.kernels.launch_sizes import Sizes
from lynx_exp.routing.backends.triton.kernels.rounds import round_kernel, settle_kernel, start_kernel
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing, StepContext


def run(plan: Plan, routing: Routing, step: StepContext, rule: RouterRule, sizes: Sizes, numbers: Tensor) -> Routing:
    """`numbers` are those of the plan, on the device; `sizes` those of every launch. Not for routers with groups."""
    rounds, lanes, experts = plan.rounds, step.num_lanes, sizes["E"]
    assert rounds is not None
    own_experts, own_weights = routing.experts.contiguous(), routing.weights.contiguous()
    new_experts, new_weights = torch.empty_like(own_experts), torch.empty_like(own_weights)
    grid = (-(-sizes["num_rows"] // sizes["BT"]), lanes)
    zeros = own_experts.new_zeros(2 * rounds + 1, lanes, experts)  # gains and bids of each round, and totals
    rows: dict[str, object] = {
        **{name: value for name, value in sizes.items() if name != "BE"},
        "experts_ptr": own_experts,
        "lane_ptr": step.lane.contiguous(),
        "live_ptr": step.live.contiguous(),
        "kept_ptr": own_experts.new_zeros(rounds, lanes, experts, dtype=torch.int8),
    }
    choice = routing.choice(rule).contiguous()
    if plan.first:
        start_kernel[grid](**rows, choice_ptr=choice, guarantee=plan.first)
    shared = rows | {
        "BE": sizes["BE"],
        "numbers_ptr": numbers,
        "sums_ptr": zeros,
        "total_ptr": zeros[2 * rounds],
        "first_ptr": numbers.new_empty(lanes),
        "rounds": rounds,
        "budget": plan.budget,
        "HALVES": plan.numbers[0] < 0.0,
    }
    mass = routing.mass(rule).contiguous()
    for number in range(1, rounds + 1):
        for bids in (False, True):
            round_kernel[grid](
                **shared, mass_ptr=mass, number=number, BIDS=bids, FIRST_ROUND=number == 1, UTILITY=plan.variant
            )
    settle_kernel[grid](
        **shared,
        choice_ptr=choice,
        scores_ptr=routing.scores(rule).contiguous(),
        weights_ptr=own_weights,
        scale_ptr=numbers if rule.expert_scale is None else rule.expert_scale.float(),
        out_experts_ptr=new_experts,
        out_weights_ptr=new_weights,
        scaling=float(rule.scaling),
        RENORMALIZE=rule.renormalize,
        SCALED=rule.expert_scale is not None,
        BW=next_power_of_2(sizes["K"]),
    )
    return Routing(logits=routing.logits, experts=new_experts, weights=new_weights)
