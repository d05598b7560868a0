"""`lynx_exp.routing.ops.protect.keep_protected` in one launch: a program for each block of rows.

T token rows, E experts, K top-k, W slots afterwards, BT/BE/BW their tile sizes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import JITFunction, next_power_of_2

from lynx_exp.routing.backends.triton.kernels.launch_sizes import row_blocks
from lynx_exp.routing.backends.triton.kernels.tiles import (
    LARGEST_INT32,
    LOWEST_INT32,
    factor_of,
    first_ordered,
    listed,
    ordered,
    tile,
)
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing


@triton.jit(do_not_specialize=["num_rows"])
def protect_kernel(
    choice_ptr,
    scores_ptr,
    own_ptr,
    own_weights_ptr,
    experts_ptr,
    weights_ptr,
    protected_ptr,
    scale_ptr,
    out_experts_ptr,
    out_weights_ptr,
    scaling,
    num_rows,
    RENORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    W: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BW: tl.constexpr,
):
    """Grid (N,)."""
    e = tl.arange(0, BE)
    w = tl.arange(0, BW)
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    mine = rows < num_rows
    choice = tile(choice_ptr, rows, mine, E, BE, float("-inf")).to(tl.float32)
    protected = tl.load(protected_ptr + e, mask=e < E, other=0) != 0
    running = listed(experts_ptr, rows, mine, 0, W, W, BT, BE)
    needed = listed(own_ptr, rows, mine, 0, K, K, BT, BE) & protected[None, :] & (choice > float("-inf"))
    lost = tl.max((needed & ~running).to(tl.int32), 1) > 0

    order = ordered(choice)
    runs = running | needed
    excess = tl.sum(runs.to(tl.int32), 1) - W
    for number in range(K):  # no more are needed, and so no more give way; of equal ones the highest
        may_go = runs & ~needed
        least = tl.min(tl.where(may_go, order, LARGEST_INT32), 1)
        goes = tl.max(tl.where(may_go & (order == least[:, None]), e[None, :], -1), 1)
        runs = runs & ~((e[None, :] == goes[:, None]) & (number < excess)[:, None])

    own = mine[:, None] & (w < K)[None, :]
    own_at = rows[:, None] * K + w[None, :]
    own_experts = tl.load(own_ptr + own_at, mask=own, other=-1)
    own_weights = tl.load(own_weights_ptr + own_at, mask=own, other=0.0)
    own_mass = tl.load(scores_ptr + rows[:, None] * E + tl.where(own, own_experts, 0), mask=own, other=0.0)
    order = tl.where(runs, order, LOWEST_INT32)
    experts = tl.zeros([BT, BW], tl.int32)
    fills = (w < 0)[None, :] & mine[:, None]
    first = tl.zeros([BT], tl.int32)
    for slot in range(W):
        at, there = first_ordered(order, e, BE)
        order = tl.where(e[None, :] == at[:, None], LOWEST_INT32, order)
        first = tl.where(slot == 0, at, first)
        here = (w == slot)[None, :]
        experts = tl.where(here, tl.where(there, at, first)[:, None], experts)
        fills = fills | (here & (there & lost)[:, None])
    raw = tl.load(scores_ptr + rows[:, None] * E + experts, mask=fills, other=0.0).to(tl.float32)
    total = tl.where(lost, tl.sum(raw, 1), 1.0)
    mass = scaling + tl.zeros([BT], tl.float32)
    if not RENORMALIZE:
        mass = mass * tl.sum(own_mass.to(tl.float32), 1)
    made = raw * factor_of(mass, total)[:, None]
    if SCALED:
        made = made * tl.load(scale_ptr + experts, mask=fills, other=0.0)
    # a row that has its own top-K again has its own weights again
    differs = tl.where((w < K)[None, :], own_experts != experts, fills) & (w < W)[None, :]
    again = tl.max(differs.to(tl.int32), 1) == 0

    slots = mine[:, None] & (w < W)[None, :]
    at = rows[:, None] * W + w[None, :]
    was = tl.load(weights_ptr + at, mask=slots, other=0.0)
    made = tl.where(again[:, None], own_weights.to(tl.float32), made)
    tl.store(out_weights_ptr + at, tl.where(lost[:, None], made.to(was.dtype), was), mask=slots)
    were = tl.load(experts_ptr + at, mask=slots, other=0)
    tl.store(out_experts_ptr + at, tl.where(lost[:, None], experts.to(tl.int64), were), mask=slots)


def keep_protected(before: Routing, after: Routing, protected_E: Tensor, rule: RouterRule) -> Routing:
    """What `ops.protect.keep_protected` returns, up to rounding."""
    if isinstance(protect_kernel, JITFunction) and not before.logits.is_cuda:
        raise RuntimeError("on a CPU the kernels run only where TRITON_INTERPRET=1 was set beforehand")
    rows, width = after.experts.shape
    experts, weights = after.experts.contiguous(), after.weights.contiguous()
    new_experts, new_weights = torch.empty_like(experts), torch.empty_like(weights)
    scores = before.scores(rule).contiguous()
    sizes = row_blocks(rows, before.num_experts, before.top_k)
    with torch.cuda.device_of(before.logits):
        protect_kernel[(-(-rows // sizes["BT"]),)](
            before.choice(rule).contiguous(),
            scores,
            before.experts.contiguous(),
            before.weights.contiguous(),
            experts,
            weights,
            protected_E,
            scores if rule.expert_scale is None else rule.expert_scale.float(),
            new_experts,
            new_weights,
            float(rule.scaling),
            RENORMALIZE=rule.renormalize,
            SCALED=rule.expert_scale is not None,
            W=width,
            BW=next_power_of_2(width),
            **sizes,
        )
    return Routing(logits=after.logits, experts=new_experts, weights=new_weights)
