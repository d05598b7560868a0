"""`lynx_exp.routing.ops.weigh` in one launch: a program for each block of rows.

T token rows, E experts, K top-k, W slots afterwards, BT/BE/BW their tile sizes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import JITFunction, next_power_of_2

from lynx_exp.routing.backends.triton.kernels.launch_sizes import row_blocks
from lynx_exp.routing.backends.triton.kernels.tiles import LOWEST_INT32, factor_of, first_ordered, ordered, tile
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing


@triton.jit(do_not_specialize=["num_rows"])
def weigh_kernel(
    choice_ptr,
    scores_ptr,
    own_ptr,
    experts_ptr,
    weights_ptr,
    scale_ptr,
    out_ptr,
    scaling,
    num_rows,
    COUNT: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BW: tl.constexpr,
):
    """COUNT: as `denominator_of` gives it."""
    w = tl.arange(0, BW)
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    mine = rows < num_rows
    slots = mine[:, None] & (w < W)[None, :]
    at = rows[:, None] * W + w[None, :]
    experts = tl.load(experts_ptr + at, mask=slots, other=0)
    weights = tl.load(weights_ptr + at, mask=slots, other=0.0)

    repeats = tl.zeros([BT, BW], tl.int1)
    changed = tl.zeros([BT], tl.int1)
    own_mass = tl.zeros([BT], tl.float32)
    for slot in tl.static_range(W):  # unrolled, so that no load waits for the one before
        expert = tl.load(experts_ptr + rows * W + slot, mask=mine, other=0)
        repeats = repeats | ((w > slot)[None, :] & (experts == expert[:, None]))
        if slot < K:
            own = tl.load(own_ptr + rows * K + slot, mask=mine, other=0)
            changed = changed | (own != expert)
            own_mass += tl.load(scores_ptr + rows * E + own, mask=mine, other=0.0).to(tl.float32)
    runs = slots & ~repeats
    changed = mine & (changed | (tl.max((runs & (w >= K)[None, :]).to(tl.int32), 1) > 0))
    raw = tl.load(scores_ptr + rows[:, None] * E + experts, mask=runs & changed[:, None], other=0.0).to(tl.float32)
    if COUNT < 0:
        total = tl.sum(raw, 1)
    elif COUNT == 0:
        total = own_mass
    else:
        e = tl.arange(0, BE)
        choice = tile(choice_ptr, rows, changed, E, BE, float("-inf")).to(tl.float32)
        scores = tile(scores_ptr, rows, changed, E, BE, 0.0).to(tl.float32)
        opened = choice > float("-inf")
        if COUNT < E:
            order = tl.where(opened, ordered(choice), LOWEST_INT32)
            opened = (e < 0)[None, :] & changed[:, None]
            for _ in range(COUNT):
                best_at, _there = first_ordered(order, e, BE)
                best = e[None, :] == best_at[:, None]
                order = tl.where(best, LOWEST_INT32, order)
                opened = opened | best
        total = tl.sum(tl.where(opened, scores, 0.0), 1)
    total = tl.where(changed, total, 1.0)
    mass = scaling + tl.zeros([BT], tl.float32)
    if not RENORMALIZE:
        mass = mass * own_mass
    new = raw * factor_of(mass, total)[:, None]
    if SCALED:
        new = new * tl.load(scale_ptr + experts, mask=slots, other=0.0)
    tl.store(out_ptr + at, tl.where(changed[:, None], new.to(weights.dtype), weights), mask=slots)


def weigh(before: Routing, after: Routing, rule: RouterRule, count: int) -> Routing:
    """What `ops.weigh.weigh` returns, up to rounding."""
    if isinstance(weigh_kernel, JITFunction) and not before.logits.is_cuda:
        raise RuntimeError("on a CPU the kernels run only where TRITON_INTERPRET=1 was set beforehand")
    rows, width = after.experts.shape
    scores, weights = before.scores(rule).contiguous(), after.weights.contiguous()
    new: Tensor = torch.empty_like(weights)
    sizes = row_blocks(rows, before.num_experts, before.top_k)
    if rows:
        with torch.cuda.device_of(before.logits):
            weigh_kernel[(-(-rows // sizes["BT"]),)](
                before.choice(rule).contiguous() if count > 0 else scores,  # what is not used still has to point
                scores,
                before.experts.contiguous(),
                after.experts.contiguous(),
                weights,
                scores if rule.expert_scale is None else rule.expert_scale.float(),
                new,
                float(rule.scaling),
                COUNT=count,
                RENORMALIZE=rule.renormalize,
                SCALED=rule.expert_scale is not None,
                W=width,
                BW=next_power_of_2(width),
                **sizes,
            )
    return Routing(logits=after.logits, experts=after.experts, weights=new)
