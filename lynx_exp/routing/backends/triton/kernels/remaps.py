"""The last of a lane policy's three choices, inside a Triton kernel: each row into the set that its lane keeps.

T token rows, E experts, K top-k, W columns afterwards, BT/BE/BW their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.tiles import (
    LOWEST_INT32,
    factor_of,
    first_best,
    first_ordered,
    listed,
    ordered,
    tile,
)


@triton.jit
def remap(
    rows,
    mine,
    acts,
    keep,  # [1 or BT, BE] bool
    choice_ptr,
    scores_ptr,
    experts_ptr,
    weights_ptr,
    scale_ptr,
    out_experts_ptr,
    out_weights_ptr,
    scaling,
    first,
    max_rank,
    E: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    W: tl.constexpr,
    OWN_FIRST: tl.constexpr,
    RANKED: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BW: tl.constexpr,
):
    """Write the new experts and weights of the rows `mine`, as `remap.restrict` defines them.

    OWN_FIRST opens to each row its own `first` experts too; RANKED only its best `max_rank`.
    """
    e = tl.arange(0, BE)
    w = tl.arange(0, BW)
    choice = tile(choice_ptr, rows, acts, E, BE, float("-inf")).to(tl.float32)
    opened = choice > float("-inf")
    inside = keep
    order = ordered(choice)
    if OWN_FIRST:
        inside = inside | listed(experts_ptr, rows, acts, 0, first, K, BT, BE)
    if RANKED:
        left = tl.where(opened, order, LOWEST_INT32)
        for _ in range(max_rank):
            at, _there = first_ordered(left, e, BE)
            left = tl.where(e[None, :] == at[:, None], LOWEST_INT32, left)
        inside = inside & (left == LOWEST_INT32)
    allowed = opened & inside
    changes = acts & (tl.max(allowed.to(tl.int32), 1) > 0)
    if SLOTS == K:
        outside = listed(experts_ptr, rows, acts, 0, K, K, BT, BE) & ~inside
        changes = changes & (tl.max(outside.to(tl.int32), 1) > 0)

    own = mine[:, None] & (w < K)[None, :]
    own_at = rows[:, None] * K + w[None, :]
    own_first = tl.load(experts_ptr + rows * K, mask=mine, other=0)
    own_experts = tl.load(experts_ptr + own_at, mask=own, other=0)
    own_experts = tl.where(own, own_experts, own_first[:, None])
    own_weights = tl.load(weights_ptr + own_at, mask=own, other=0.0)

    # the experts first, then all their scores at once: a load in each round would be waited for in each
    experts = tl.zeros([BT, BW], tl.int32)
    fills = (w < 0)[None, :] & changes[:, None]
    best_expert = tl.zeros([BT], tl.int32)
    order = tl.where(allowed, order, LOWEST_INT32)
    for slot in range(SLOTS):
        at, there = first_ordered(order, e, BE)
        order = tl.where(e[None, :] == at[:, None], LOWEST_INT32, order)
        best_expert = tl.where(slot == 0, at, best_expert)
        here = (w == slot)[None, :]
        experts = tl.where(here, tl.where(there, at, best_expert)[:, None], experts)
        fills = fills | (here & (there & changes)[:, None])
    experts = tl.where((w < SLOTS)[None, :], experts, best_expert[:, None])
    raw = tl.load(scores_ptr + rows[:, None] * E + experts, mask=fills, other=0.0).to(tl.float32)
    total = tl.where(changes, tl.sum(raw, 1), 1.0)
    if RENORMALIZE:
        mass = scaling
    elif SCALED:
        own_scale = tl.load(scale_ptr + own_experts, mask=own, other=1.0)
        mass = tl.sum(tl.div_rn(own_weights.to(tl.float32), own_scale), 1)
    else:
        mass = tl.sum(own_weights.to(tl.float32), 1)
    weights = raw * factor_of(mass + tl.zeros([BT], tl.float32), total)[:, None]
    if SCALED:
        weights = weights * tl.load(scale_ptr + experts, mask=changes[:, None], other=0.0)

    out_at = rows[:, None] * W + w[None, :]
    written = mine[:, None] & (w < W)[None, :]
    experts = tl.where(changes[:, None], experts.to(tl.int64), own_experts)
    weights = tl.where(changes[:, None], weights.to(own_weights.dtype), own_weights)
    tl.store(out_experts_ptr + out_at, experts, mask=written)
    tl.store(out_weights_ptr + out_at, weights, mask=written)


@triton.jit
def substitute(
    rows,
    mine,
    acts,
    keep,  # [BE] bool
    experts_ptr,
    alike_ptr,
    out_experts_ptr,
    primary,
    threshold,
    E: tl.constexpr,
    K: tl.constexpr,
    BE: tl.constexpr,
):
    """`sere`: an expert outside the kept set gives way to the most similar one inside."""
    e = tl.arange(0, BE)
    for column in range(K):
        expert = tl.load(experts_ptr + rows * K + column, mask=mine, other=0)
        if column >= primary:
            alike = tl.load(
                alike_ptr + expert[:, None] * E + e[None, :], mask=acts[:, None] & keep[None, :], other=-1.0
            )
            nearest, at = first_best(alike, keep[None, :], e, BE)
            kept = tl.max((keep[None, :] & (e[None, :] == expert.to(tl.int32)[:, None])).to(tl.int32), 1) > 0
            gives_way = acts & ~kept & (nearest >= threshold)
            expert = tl.where(gives_way, at.to(tl.int64), expert)
        tl.store(out_experts_ptr + rows * K + column, expert, mask=mine)
