"""What the selection kernels share: tiles of token rows, exact sums, and the remap.

Everything here is called from inside a Triton kernel. A tile is BT token rows times BE >= E experts; masks stand for
ends that are not full, rows of other lanes, and rows that are not live.

T token rows, E experts, K top-k, W columns afterwards, BT/BE/BK/BW their tile sizes.
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
    allowed = opened & keep
    if OWN_FIRST:
        allowed = allowed | (opened & listed(experts_ptr, rows, acts, 0, first, K, BT, BE))
    if RANKED:
        left = opened
        for _ in range(max_rank):
            _best, at = first_best(choice, left, e, BE)
            left = left & (e[None, :] != at[:, None])
        allowed = allowed & ~left
    changes = acts & (tl.max(allowed.to(tl.int32), 1) > 0)
    if SLOTS == K:
        outside = listed(experts_ptr, rows, acts, 0, K, K, BT, BE) & ~allowed
        changes = changes & (tl.max(outside.to(tl.int32), 1) > 0)

    own = mine[:, None] & (w < K)[None, :]
    own_at = rows[:, None] * K + w[None, :]
    own_first = tl.load(experts_ptr + rows * K, mask=mine, other=0)
    own_experts = tl.load(experts_ptr + own_at, mask=own, other=0)
    own_experts = tl.where(own, own_experts, own_first[:, None])
    own_weights = tl.load(weights_ptr + own_at, mask=own, other=0.0)

    experts = tl.zeros([BT, BW], tl.int32)
    raw = tl.zeros([BT, BW], tl.float32)
    total = tl.zeros([BT], tl.float32)
    best_expert = tl.zeros([BT], tl.int32)
    for slot in range(SLOTS):
        best, at = first_best(choice, allowed, e, BE)
        allowed = allowed & (e[None, :] != at[:, None])
        found = changes & (best > float("-inf"))
        best_expert = tl.where(slot == 0, at, best_expert)
        score = tl.load(scores_ptr + rows * E + at, mask=found, other=0.0).to(tl.float32)
        total += score
        here = (w == slot)[None, :]
        experts = tl.where(here, tl.where(found, at, best_expert)[:, None], experts)
        raw = tl.where(here, score[:, None], raw)
    experts = tl.where((w < SLOTS)[None, :], experts, best_expert[:, None])
    total = tl.where(changes, tl.maximum(total, SMALLEST), 1.0)
    mass = scaling if RENORMALIZE else tl.sum(own_weights.to(tl.float32), 1)
    weights = raw * tl.div_rn(mass + tl.zeros([BT], tl.float32), total)[:, None]
    if SCALED:
        weights = weights * tl.load(scale_ptr + experts, mask=changes[:, None], other=0.0)

    out_at = rows[:, None] * W + w[None, :]
    written = mine[:, None] & (w < W)[None, :]
    experts = tl.where(changes[:, None], experts.to(tl.int64), own_experts)
    weights = tl.where(changes[:, None], weights.to(own_weights.dtype), own_weights)
    tl.store(out_experts_ptr + out_at, experts, mask=written)
    tl.store(out_weights_ptr + out_at, weights, mask=written)
