"""What a lane's rows ask for, summed, and the set that follows: for policies whose sums need one walk over the rows.

Sums are of whole numbers (votes, and float64 in fixed point), so parts of a lane may be summed by different programs.

T token rows, E experts, K top-k, G lanes, BT/BE their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.kernels.hashes import LOW_32, mix, mix_64
from lynx_exp.routing.kernels.tiles import fixed, listed, tile, top_of

VOTED, CONFIDENT, ASKED, DRAWN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""lynx_v1_latency, lynx_v1_accuracy, sere, random_keep."""
PROTECTED = tl.constexpr(2**20)
"""Above the votes of a lane of any size that the kernels serve: an expert that is kept in any case."""
TINY_SHARE = tl.constexpr(1e-8)


@triton.jit
def asked_by(
    rows,
    acts,
    mass_ptr,
    experts_ptr,
    weights_ptr,
    first,
    confidence,
    KEEP: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """(votes int64, mass int64 fixed point), both `[BE]`, of the live rows of a tile."""
    e = tl.arange(0, BE)
    columns = first if KEEP == ASKED else K
    votes = tl.sum(listed(experts_ptr, rows, acts, 0, columns, K, BT, BE).to(tl.int64), 0)
    mass = tl.zeros([BE], tl.int64)
    if KEEP != ASKED:
        mass += tl.sum(fixed(tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64)), 0)
    if KEEP == CONFIDENT:
        best_weight = tl.load(weights_ptr + rows * K, mask=acts, other=0.0).to(tl.float32)
        second = tl.load(weights_ptr + rows * K + 1, mask=acts, other=0.0).to(tl.float32)
        sure = acts & (tl.div_rn(best_weight - second, best_weight + TINY_SHARE) > confidence.to(tl.float32))
        expert = tl.load(experts_ptr + rows * K, mask=sure, other=BE).to(tl.int32)
        votes += PROTECTED * tl.sum((e[None, :] == expert[:, None]).to(tl.int64), 0)
    return votes, mass


@triton.jit
def kept_by(
    votes,
    mass,
    lane,
    key_ptr,
    salt,
    budget,
    KEEP: tl.constexpr,
    E: tl.constexpr,
    BE: tl.constexpr,
):
    """`[BE]` bool: the lane's kept set; the `keep` of the policy in `lynx_exp.routing.policies` is the definition."""
    e = tl.arange(0, BE)
    if KEEP == ASKED:
        keep = (votes > 0) & (e < E)
    elif KEEP == DRAWN:
        lane_hash = mix_64(tl.load(key_ptr + lane)) ^ (salt.to(tl.int64) & LOW_32)
        draw = mix(mix(lane_hash) ^ mix((e + 1).to(tl.int64)))
        keep = top_of(tl.where(e < E, draw, -1), budget, BE)
    else:
        protected = votes >= PROTECTED
        votes = tl.where(protected, PROTECTED, votes)
        votes = tl.where(e < E, votes, -1)
        limit = tl.sum(tl.where(e == BE - budget, tl.sort(votes), 0), 0)
        above = votes > limit
        tied = votes == limit
        wanted = budget - tl.sum(above.to(tl.int32), 0)
        keep = above | protected | (tied & top_of(tl.where(tied, mass, -1), wanted, BE))
    return keep
