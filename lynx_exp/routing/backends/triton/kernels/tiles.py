"""What the selection kernels share: tiles of token rows, and exact sums.

Everything here is called from inside a Triton kernel. A tile is BT token rows times BE >= E experts; masks stand for
ends that are not full, rows of other lanes, and rows that are not live.

T token rows, E experts, K top-k, BT/BE their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIXED_POINT = tl.constexpr(2.0**32)
ROUNDS = tl.constexpr(1.5 * 2.0**52)
"""Adding and subtracting it rounds a float64 below 2^51 to the nearest whole number, halves to even."""
WHOLE = tl.constexpr(2.0**51)
SMALLEST = tl.constexpr(1.1754943508222875e-38)
ROWS_COUNTED = tl.constexpr(256)
LOWEST_INT64 = tl.constexpr(-(2**63))


@triton.jit
def fixed(value):
    """int64 fixed point of a float64, exactly as `lanes.lane_sum`: the sums do not depend on the order of rows."""
    scaled = value * FIXED_POINT
    return tl.where(tl.abs(scaled) < WHOLE, (scaled + ROUNDS) - ROUNDS, scaled).to(tl.int64)


@triton.jit
def lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT: tl.constexpr):
    """(rows `[BT]`, which of them are this lane's, which of those are live)."""
    rows = start + tl.arange(0, BT)
    real = rows < num_rows
    mine = (tl.load(lane_ptr + rows, mask=real, other=-1) == lane) & real
    return rows, mine, mine & (tl.load(live_ptr + rows, mask=mine, other=0) != 0)


@triton.jit
def lane_size(lane, num_rows, lane_ptr, live_ptr):
    """Live rows of the lane."""
    size = tl.zeros([], tl.int32)
    for start in range(0, num_rows, ROWS_COUNTED):
        _rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, ROWS_COUNTED)
        size += tl.sum(acts.to(tl.int32), 0)
    return size


@triton.jit
def tile(ptr, rows, acts, E: tl.constexpr, BE: tl.constexpr, other):
    """`[BT, BE]` in the tensor's own type; `other` where there is nothing to read."""
    e = tl.arange(0, BE)
    return tl.load(ptr + rows[:, None] * E + e[None, :], mask=acts[:, None] & (e < E)[None, :], other=other)


@triton.jit
def first_best(key, left, e, BE: tl.constexpr):
    """(largest key `[BT]`, its lowest index `[BT]`) among `left`; index BE where nothing is left."""
    best = tl.max(tl.where(left, key, float("-inf")), 1)
    return best, tl.min(tl.where(left & (key == best[:, None]), e[None, :], BE), 1)


@triton.jit
def top_of(key, count, BE: tl.constexpr):
    """`[BE]` bool: the `count` largest of an int64 key, at least 1, ties by lower index."""
    e = tl.arange(0, BE)
    limit = tl.sum(tl.where(e == BE - count, tl.sort(key), 0), 0)
    above = key > limit
    tied = key == limit
    wanted = count - tl.sum(above.to(tl.int32), 0)
    return above | (tied & (tl.cumsum(tied.to(tl.int32), 0) <= wanted))


@triton.jit
def listed(experts_ptr, rows, acts, first, last, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr):
    """`[BT, BE]` bool: the experts in the columns `first` to `last` of the rows' own top-K."""
    e = tl.arange(0, BE)
    found = tl.zeros([BT, BE], tl.int1)
    for k in range(first, last):
        expert = tl.load(experts_ptr + rows * K + k, mask=acts, other=BE).to(tl.int32)
        found = found | (e[None, :] == expert[:, None])
    return found
