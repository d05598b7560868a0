"""Lanes whose rows are spread over programs: the launches that sum what the rows of each block ask for.

`sum_kernel` leaves the sums of each lane's rows of each block of BT; every program that needs those of a lane adds them
up, so nothing has to be zeroed, waited for or added in any order. `lynx`, whose rows vote by what the lane asks for,
has `vote_kernel` afterwards.

T token rows, E experts, K top-k, G lanes, N blocks of rows, BT/BE/BN their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.lynx_kernel import voted_by
from lynx_exp.routing.backends.triton.kernels.sums import BINNED, asked_by
from lynx_exp.routing.backends.triton.kernels.tiles import FIXED_POINT, lane_rows, lane_size


@triton.jit
def _at(sums_ptr, lane, block, BE: tl.constexpr, E: tl.constexpr):
    """Where the votes of a lane's rows of a block are; the totals come E later. `sums_ptr`: int64 `[G, N, 2, E]`."""
    return sums_ptr + (lane * tl.num_programs(0) + block) * 2 * E + tl.arange(0, BE)


@triton.jit
def added(
    sums_ptr,
    part,
    lane,
    num_rows,
    lane_ptr,
    live_ptr,
    E: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
):
    """(`[BE]` int64 the lane's votes (part 0) or totals (1), its live rows), over its blocks: BN at a time, which are
    loaded side by side; those without live rows are unwritten."""
    n, e = tl.arange(0, BN), tl.arange(0, BE)
    blocks = tl.num_programs(0)
    total = tl.zeros([BE], tl.int64)
    size = tl.zeros([], tl.int32)
    for first in range(0, blocks, BN):
        rows = (first + n)[:, None] * BT + tl.arange(0, BT)[None, :]
        real = rows < num_rows
        live = tl.load(live_ptr + rows, mask=real, other=0)
        acts = real & (tl.load(lane_ptr + rows, mask=real, other=-1) == lane) & (live != 0)
        acting = tl.sum(acts.to(tl.int32), 1)
        size += tl.sum(acting, 0)
        at = sums_ptr + (lane * blocks + first + n)[:, None] * 2 * E + part * E + e[None, :]
        total += tl.sum(tl.load(at, mask=(acting > 0)[:, None] & (e < E)[None, :], other=0), 0)
    return total, size


@triton.jit(do_not_specialize=["num_rows", "asked"])
def sum_kernel(
    choice_ptr,
    view_ptr,
    experts_ptr,
    weights_ptr,
    lane_ptr,
    live_ptr,
    numbers_ptr,
    sums_ptr,
    num_rows,
    asked,
    KEEP: tl.constexpr,
    VARIANT: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """Grid (N, G)."""
    block, lane = tl.program_id(0), tl.program_id(1)
    rows, _mine, acts = lane_rows(block * BT, lane, num_rows, lane_ptr, live_ptr, BT)
    if tl.max(acts.to(tl.int32), 0) > 0:
        a, b = tl.load(numbers_ptr), tl.load(numbers_ptr + 1)
        size = tl.full([], 1.0, tl.float64)
        if KEEP == BINNED:
            size = lane_size(lane, num_rows, lane_ptr, live_ptr).to(tl.float64)
        votes, total = asked_by(
            rows, acts, size, choice_ptr, view_ptr, experts_ptr, weights_ptr, asked, a, b, KEEP, VARIANT, E, K, BT, BE
        )
        at = _at(sums_ptr, lane, block, BE, E)
        tl.store(at, votes, mask=tl.arange(0, BE) < E)
        tl.store(at + E, total, mask=tl.arange(0, BE) < E)


@triton.jit(do_not_specialize=["num_rows"])
def vote_kernel(
    view_ptr,
    lane_ptr,
    live_ptr,
    numbers_ptr,
    sums_ptr,
    num_rows,
    VARIANT: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
):
    """`lynx`: from the totals of `sum_kernel` to votes; grid (N, G)."""
    block, lane = tl.program_id(0), tl.program_id(1)
    rows, _mine, acts = lane_rows(block * BT, lane, num_rows, lane_ptr, live_ptr, BT)
    if tl.max(acts.to(tl.int32), 0) > 0:
        a, b = tl.load(numbers_ptr), tl.load(numbers_ptr + 1)
        total, live = added(sums_ptr, 1, lane, num_rows, lane_ptr, live_ptr, E, BT, BE, BN)
        pulled, size = total.to(tl.float64) / FIXED_POINT, live.to(tl.float64)
        voted = voted_by(view_ptr, rows, acts, pulled, size, a.to(tl.float32), b, VARIANT, E, K, BE)
        tl.store(_at(sums_ptr, lane, block, BE, E), voted.to(tl.int64), mask=tl.arange(0, BE) < E)
