"""What a lane's rows ask for, summed, and the set that follows.

Sums are of whole numbers (votes, and float64 in fixed point), so parts of a lane may be summed by different programs.

T token rows, E experts, K top-k, G lanes, BT/BE their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.hashes import LOW_32, mix, mix_64
from lynx_exp.routing.backends.triton.kernels.lynx_kernel import bins
from lynx_exp.routing.backends.triton.kernels.tiles import LOWEST_INT64, fixed, listed, not_shut, tile, top_of

VOTED, CONFIDENT, ASKED, DRAWN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""lynx_v1_latency; lynx_v1_accuracy; oea and sere; random_keep."""
TOTAL, BINNED = tl.constexpr(4), tl.constexpr(5)
"""xshare and no_drop; lynx."""
PROTECTED = tl.constexpr(2**20)
"""Above the votes of a lane of any size that the kernels serve: an expert that is kept in any case."""
TINY_SHARE = tl.constexpr(1e-8)
MOST_LOGIT = tl.constexpr(1024.0)
VETO = tl.constexpr(-(2.0**21))
"""What a row adds for an expert that it shuts out: more than any others of MOST_ROWS rows can make up."""
VETOED = tl.constexpr(-(2**52))
"""Below it, in fixed point, is a sum with a veto, and none without."""


@triton.jit
def _insisted(rows, acts, choice_ptr, mass_ptr, experts_ptr, k0, p, E: tl.constexpr, K: tl.constexpr, BE: tl.constexpr):
    """`[BE]` int64: how many rows insist on an expert, under `oea` with p below 1."""
    e = tl.arange(0, BE)
    whole = tl.sum(tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64), 1)
    held = tl.zeros_like(whole)
    votes = tl.zeros([BE], tl.int64)
    counted = not_shut(choice_ptr, rows, acts, E, BE)
    for k in tl.static_range(K):
        counts = acts & (k < k0)
        expert = tl.load(experts_ptr + rows * K + k, mask=counts, other=0).to(tl.int32)
        share = tl.load(mass_ptr + rows * E + expert, mask=counts, other=0.0).to(tl.float64)
        share = share / tl.where(acts, whole, 1.0)
        held += share
        insists = counts & ((held - share < p) | (k == 0))
        votes += tl.sum((counted & insists[:, None] & (e[None, :] == expert[:, None])).to(tl.int64), 0)
    return votes


@triton.jit
def asked_by(
    rows,
    acts,
    size,
    choice_ptr,
    view_ptr,
    experts_ptr,
    weights_ptr,
    first,
    a,
    b,
    KEEP: tl.constexpr,
    VARIANT: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """(votes, sums of the view in fixed point), both `[BE]` int64, of the live rows of a tile; `a`, `b`, `first`: the
    plan's numbers; `size`: float64, live rows of the lane, for BINNED."""
    e = tl.arange(0, BE)
    votes = tl.zeros([BE], tl.int64)
    total = tl.zeros([BE], tl.int64)
    if KEEP == BINNED:
        _affinity, _bin, pull, _open = bins(view_ptr, rows, acts, size, a.to(tl.float32), b, VARIANT, E, BE)
        total += tl.sum(fixed(pull), 0)
    elif (KEEP == ASKED) & (VARIANT == 1):
        votes += _insisted(rows, acts, choice_ptr, view_ptr, experts_ptr, first, a, E, K, BE)
    else:
        columns = first if (KEEP == ASKED) | (KEEP == TOTAL) else K
        if columns > 0:
            asked = listed(experts_ptr, rows, acts, 0, columns, K, BT, BE)
            votes += tl.sum((asked & not_shut(choice_ptr, rows, acts, E, BE)).to(tl.int32), 0)
    if (KEEP == VOTED) | (KEEP == CONFIDENT) | (KEEP == TOTAL):
        value = tile(view_ptr, rows, acts, E, BE, 0.0).to(tl.float64)
        if (KEEP == TOTAL) & (VARIANT == 1):
            value = tl.where(value < -MOST_LOGIT, VETO, tl.minimum(value, MOST_LOGIT))
        total += tl.sum(fixed(value), 0)
    if KEEP == CONFIDENT:
        best = tl.load(weights_ptr + rows * K, mask=acts, other=0.0).to(tl.float32)
        second = tl.load(weights_ptr + rows * K + 1, mask=acts, other=0.0).to(tl.float32)
        sure = acts & (tl.div_rn(best - second, best + TINY_SHARE) > a.to(tl.float32))
        expert = tl.load(experts_ptr + rows * K, mask=sure, other=BE).to(tl.int32)
        votes += PROTECTED * tl.sum((e[None, :] == expert[:, None]).to(tl.int64), 0)
    return votes, total


@triton.jit
def kept_by(
    votes,
    total,
    size,
    lane,
    key_ptr,
    salt,
    budget,
    limit,
    KEEP: tl.constexpr,
    E: tl.constexpr,
    BE: tl.constexpr,
):
    """`[BE]` bool: the lane's kept set; the `keep` of the policy in `lynx_exp.routing.policies` is the definition."""
    e = tl.arange(0, BE)
    if (KEEP == ASKED) | (KEEP == BINNED):
        keep = (votes > 0) & (e < E)
    elif KEEP == DRAWN:
        lane_hash = mix_64(tl.load(key_ptr + lane)) ^ (salt.to(tl.int64) & LOW_32)
        draw = mix(mix(lane_hash) ^ mix((e + 1).to(tl.int64)))
        keep = top_of(tl.where(e < E, draw, -1), budget, BE)
    elif KEEP == TOTAL:
        key = tl.where(total < VETOED, LOWEST_INT64 + 1, total)
        key = tl.where(votes > 0, -(LOWEST_INT64 + 1), key)
        keep = top_of(tl.where(e < E, key, LOWEST_INT64), budget, BE) | (votes > 0) | (size > limit)
    else:
        protected = votes >= PROTECTED
        votes = tl.where(protected, PROTECTED, votes)
        votes = tl.where(e < E, votes, -1)
        bound = tl.sum(tl.where(e == BE - budget, tl.sort(votes), 0), 0)
        above = votes > bound
        tied = votes == bound
        wanted = budget - tl.sum(above.to(tl.int32), 0)
        keep = above | protected | (tied & top_of(tl.where(tied, total, -1), wanted, BE))
    return keep
