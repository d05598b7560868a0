"""`lynx` inside a Triton kernel: each row bins its gaps, then votes.

The definition is `lynx_exp.routing.policies.lynx`.

T token rows, E experts, K top-k, BT/BE their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.tiles import LOWEST_INT32, first_ordered, ordered, tile


@triton.jit
def bins(affinity_ptr, rows, acts, size, alpha, lowest, CEIL: tl.constexpr, E: tl.constexpr, BE: tl.constexpr):
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
def voted_by(
    affinity_ptr,
    rows,
    acts,
    pulled,
    size,
    alpha,
    lowest,
    CEIL: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BE: tl.constexpr,
):
    """`[BE]` int32: 1 for the experts that a live row of the tile votes for; `pulled`: the lane's summed pull."""
    e = tl.arange(0, BE)
    affinity, bin, pull, opened = bins(affinity_ptr, rows, acts, size, alpha, lowest, CEIL, E, BE)
    z = bin + (pulled[None, :] - pull) / size
    left = opened
    order = ordered(affinity)
    for _ in range(K):
        best = tl.max(tl.where(left, z, float("-inf")), 1)
        at, _there = first_ordered(tl.where(left & (z == best[:, None]), order, LOWEST_INT32), e, BE)
        left = left & (e[None, :] != at[:, None])
    return tl.max((opened & ~left).to(tl.int32), 0)
