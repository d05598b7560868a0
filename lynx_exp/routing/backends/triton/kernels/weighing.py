"""`lynx_exp.routing.ops.weigh` in one launch: a program for each block of rows.

T token rows, E experts, K top-k, W slots afterwards, BT/BE/BW their tile sizes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import JITFunction, next_power_of_2

from lynx_exp.routing.backends.triton.kernels.tiles import SMALLEST, first_best, tile
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing

TILE = 2048
"""Values of a tile, as for the kernels that select."""


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
    for slot in range(W):
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
        left = choice > float("-inf")
        total = tl.zeros([BT], tl.float32)
        for _ in range(COUNT):
            best, best_at = first_best(choice, left, e, BE)
            left = left & (e[None, :] != best_at[:, None])
            found = changed & (best > float("-inf"))
            total += tl.load(scores_ptr + rows * E + best_at, mask=found, other=0.0).to(tl.float32)
    total = tl.where(changed, tl.maximum(total, SMALLEST), 1.0)
    mass = scaling + tl.zeros([BT], tl.float32)
    if not RENORMALIZE:
        mass = mass * own_mass
    new = raw * tl.div_rn(mass, total)[:, None]
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
    block_experts = next_power_of_2(before.num_experts)
    block_rows = min(16, max(1, TILE // block_experts))
    if rows:
        with torch.cuda.device_of(before.logits):
            weigh_kernel[(-(-rows // block_rows),)](
                before.choice(rule).contiguous() if count > 0 else scores,  # what is not used still has to point
                scores,
                before.experts.contiguous(),
                after.experts.contiguous(),
                weights,
                scores if rule.expert_scale is None else rule.expert_scale.float(),
                new,
                float(rule.scaling),
                rows,
                COUNT=count,
                RENORMALIZE=rule.renormalize,
                SCALED=rule.expert_scale is not None,
                E=before.num_experts,
                K=before.top_k,
                W=width,
                BT=block_rows,
                BE=block_experts,
                BW=next_power_of_2(width),
                num_warps=4,
                num_stages=1,
                enable_fp_fusion=False,  # the torch definition rounds after each operation
            )
    return Routing(logits=after.logits, experts=after.experts, weights=new)
