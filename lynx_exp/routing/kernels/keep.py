"""Which experts a lane keeps, inside a Triton kernel: one program reads the rows of one lane.

Each function returns `[BE]` int32, 1 for the experts kept, and follows the `keep` of its policy in
`lynx_exp.routing.policies`, which is the definition. `coverage` has a file of its own.

T token rows, E experts, K top-k, BT/BE/BK their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.kernels.tiles import (
    FIXED_POINT,
    LOWEST_INT64,
    first_best,
    fixed,
    lane_rows,
    lane_size,
    listed,
    tile,
    top_of,
)


@triton.jit
def _bins(affinity_ptr, rows, acts, size, alpha, lowest, CEIL: tl.constexpr, E: tl.constexpr, BE: tl.constexpr):
    """(affinity float32, bin float64, pull float64, open bool), all `[BT, BE]`."""
    own = tile(affinity_ptr, rows, acts, E, BE, float("-inf"))
    affinity = own.to(tl.float32)
    opened = affinity > float("-inf")
    highest = tl.where(acts, tl.max(affinity, 1), 0.0)
    # a half type rounds after each operation, as torch does
    gap = (affinity - highest[:, None]).to(own.dtype).to(tl.float32)
    gap = (alpha * gap).to(own.dtype).to(tl.float64)
    if CEIL:
        gap = tl.ceil(gap)
    gap = tl.where(opened, tl.maximum(gap, lowest), 0.0)
    return affinity, gap, tl.where(opened, tl.exp2(gap * tl.log2(size)), 0.0), opened


@triton.jit
def keep_lynx(
    affinity_ptr,
    lane_ptr,
    live_ptr,
    lane,
    num_rows,
    alpha,
    lowest,
    CEIL: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    e = tl.arange(0, BE)
    size = tl.maximum(lane_size(lane, num_rows, lane_ptr, live_ptr), 1).to(tl.float64)
    alpha = alpha.to(tl.float32)
    column = tl.zeros([BE], tl.int64)
    for start in range(0, num_rows, BT):
        rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
        if tl.max(acts.to(tl.int32), 0) > 0:
            _affinity, _bin, pull, _open = _bins(affinity_ptr, rows, acts, size, alpha, lowest, CEIL, E, BE)
            column += tl.sum(fixed(pull), 0)
    pulled = column.to(tl.float64) / FIXED_POINT
    keep = tl.zeros([BE], tl.int32)
    for start in range(0, num_rows, BT):
        rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
        if tl.max(acts.to(tl.int32), 0) > 0:
            affinity, bin, pull, opened = _bins(affinity_ptr, rows, acts, size, alpha, lowest, CEIL, E, BE)
            z = bin + (pulled[None, :] - pull) / size
            left = opened
            for _ in range(K):
                best = tl.max(tl.where(left, z, float("-inf")), 1)
                _best, at = first_best(affinity, left & (z == best[:, None]), e, BE)
                left = left & (e[None, :] != at[:, None])
            keep = tl.maximum(keep, tl.max((opened & ~left).to(tl.int32), 0))
    return keep


@triton.jit
def keep_oea(
    mass_ptr,
    experts_ptr,
    lane_ptr,
    live_ptr,
    lane,
    num_rows,
    k0,
    p,
    BY_MASS: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """BY_MASS: p is below 1."""
    e = tl.arange(0, BE)
    keep = tl.zeros([BE], tl.int32)
    for start in range(0, num_rows, BT):
        rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
        if tl.max(acts.to(tl.int32), 0) > 0:
            if BY_MASS:
                whole = tl.sum(tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64), 1)
                held = tl.zeros([BT], tl.float64)
                for k in range(k0):
                    expert = tl.load(experts_ptr + rows * K + k, mask=acts, other=0).to(tl.int32)
                    share = tl.load(mass_ptr + rows * E + expert, mask=acts, other=0.0).to(tl.float64)
                    share = share / tl.where(acts, whole, 1.0)
                    held += share
                    insists = acts & ((held - share < p) | (k == 0))
                    asked = insists[:, None] & (e[None, :] == expert[:, None])
                    keep = tl.maximum(keep, tl.max(asked.to(tl.int32), 0))
            else:
                asked = listed(experts_ptr, rows, acts, 0, k0, K, BT, BE)
                keep = tl.maximum(keep, tl.max(asked.to(tl.int32), 0))
    return keep


@triton.jit
def keep_xshare(
    value_ptr,
    experts_ptr,
    lane_ptr,
    live_ptr,
    lane,
    num_rows,
    warm_up,
    budget,
    max_batch,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """`warm_up`: experts of each row that the lane keeps in any case."""
    e = tl.arange(0, BE)
    total = tl.zeros([BE], tl.int64)
    warm = tl.zeros([BE], tl.int32)
    size = tl.zeros([], tl.int32)
    for start in range(0, num_rows, BT):
        rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
        if tl.max(acts.to(tl.int32), 0) > 0:
            total += tl.sum(fixed(tile(value_ptr, rows, acts, E, BE, 0.0).to(tl.float64)), 0)
            size += tl.sum(acts.to(tl.int32), 0)
            warm = tl.maximum(warm, tl.max(listed(experts_ptr, rows, acts, 0, warm_up, K, BT, BE).to(tl.int32), 0))
    key = tl.where(warm > 0, -(LOWEST_INT64 + 1), total)
    largest = top_of(tl.where(e < E, key, LOWEST_INT64), budget, BE)
    return (largest | (warm > 0) | (size > max_batch)).to(tl.int32)
