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
SMALLEST, LARGEST = tl.constexpr(1.1754943508222875e-38), tl.constexpr(3.4028234663852886e38)
ROWS_COUNTED = tl.constexpr(256)
LOWEST_INT64 = tl.constexpr(-(2**63))
LOWEST_INT32, LARGEST_INT32 = tl.constexpr(-(2**31)), tl.constexpr(2**31 - 1)


@triton.jit
def fixed(value):
    """int64 fixed point of a float64, exactly as `lanes.lane_sum`: the sums do not depend on the order of rows."""
    scaled = value * FIXED_POINT
    return tl.where(tl.abs(scaled) < WHOLE, (scaled + ROUNDS) - ROUNDS, scaled).to(tl.int64)


@triton.jit
def factor_of(mass, total):
    """`lynx_exp.routing.ops.remap.factor_of`."""
    factor = tl.div_rn(mass, tl.maximum(total, SMALLEST))
    return tl.where(factor > LARGEST, LARGEST, factor)


@triton.jit
def lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT: tl.constexpr):
    """(rows `[BT]`, which of them are this lane's, which of those are live)."""
    rows = start + tl.arange(0, BT)
    real = rows < num_rows
    live = tl.load(live_ptr + rows, mask=real, other=0)  # of all rows: so that neither load waits for the other
    mine = (tl.load(lane_ptr + rows, mask=real, other=-1) == lane) & real
    return rows, mine, mine & (live != 0)


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
def ordered(value):
    """int32 above LOWEST_INT32, in the order of the float32 values: NaN largest as in `torch.topk`, zeros alike."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ LARGEST_INT32, bits)
    return tl.where(value == value, order, LARGEST_INT32)


@triton.jit
def ranked(value, column, COLUMNS: tl.constexpr):
    """int64 in the order of `ordered`, ties by lower column."""
    return (ordered(value).to(tl.int64) << 32) | (COLUMNS - 1 - column).to(tl.int64)


@triton.jit
def first_ordered(order, e, BE: tl.constexpr):
    """(index `[BT]` of the largest of what `ordered` gave, the lowest of several, BE if there is none; whether there is
    one). What is no candidate is LOWEST_INT32. In 32 bits, which a warp reduces in one instruction."""
    best = tl.max(order, 1)
    there = best > LOWEST_INT32
    at = tl.min(tl.where(order == best[:, None], e[None, :], BE), 1)
    return tl.where(there, at, BE), there


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
def not_shut(choice_ptr, rows, acts, E: tl.constexpr, BE: tl.constexpr):
    """`[BT, BE]` bool: the experts that get the vote of a row whose list they are in."""
    return tile(choice_ptr, rows, acts, E, BE, float("-inf")).to(tl.float32) != float("-inf")


@triton.jit
def listed(experts_ptr, rows, acts, first, last, K: tl.constexpr, BT: tl.constexpr, BE: tl.constexpr):
    """`[BT, BE]` bool: the experts in the columns `first` to `last` of the rows' own top-K."""
    e = tl.arange(0, BE)
    found = tl.zeros([BT, BE], tl.int1)
    for k in tl.static_range(K):  # unrolled, so that no load waits for the one before
        inside = acts & (k >= first) & (k < last)
        expert = tl.load(experts_ptr + rows * K + k, mask=inside, other=BE).to(tl.int32)
        found = found | (e[None, :] == expert[:, None])
    return found
