"""Policies that look at one row alone, and at its own top-K: one launch, a program for each block of rows.

Definitions: `remap.drop_slots`, and the policies themselves.

T token rows, E experts, K top-k, BT/BE/BK their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.hashes import LOW_32, mix, mix_64
from lynx_exp.routing.backends.triton.kernels.remaps import remap
from lynx_exp.routing.backends.triton.kernels.tiles import factor_of, listed, tile

BEYOND, ONE, WEAK, COVERED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
"""Slots that go: from a rank on (top_k, keep_ranks); one rank (deny_rank); those with less than a share of the first's
mass (min_p, naee); those after a prefix of enough mass (top_p)."""
TWO_32 = tl.constexpr(2.0**32)


@triton.jit
def _covered(rows, acts, mass_ptr, experts_ptr, p, E: tl.constexpr, K: tl.constexpr, BT, BE: tl.constexpr, k):
    """`[BT, BK]` bool: slots whose predecessors hold the probability `p`."""
    whole = tl.sum(tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64), 1)
    held = tl.zeros_like(whole)
    gone = (k[None, :] < 0) & acts[:, None]
    for column in range(K):
        expert = tl.load(experts_ptr + rows * K + column, mask=acts, other=0)
        share = tl.load(mass_ptr + rows * E + expert, mask=acts, other=0.0).to(tl.float64)
        share = share / tl.where(acts, whole, 1.0)
        held += share
        gone = gone | ((k == column)[None, :] & (held - share >= p)[:, None])
    return gone


@triton.jit(do_not_specialize=["num_rows", "rank"])
def drop_kernel(
    mass_ptr,
    experts_ptr,
    weights_ptr,
    scale_ptr,
    ratio_ptr,
    numbers_ptr,
    live_ptr,
    out_experts_ptr,
    out_weights_ptr,
    num_rows,
    rank,
    DROP: tl.constexpr,
    REWEIGHS: tl.constexpr,
    SCALED: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
):
    """REWEIGHS: the slots left take the whole mass of the row."""
    k = tl.arange(0, BK)
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    mine = rows < num_rows
    acts = mine & (tl.load(live_ptr + rows, mask=mine, other=0) != 0)
    slots = mine[:, None] & (k < K)[None, :]
    own_at = rows[:, None] * K + k[None, :]
    experts = tl.load(experts_ptr + own_at, mask=slots, other=0)
    own_weights = tl.load(weights_ptr + own_at, mask=slots, other=0.0)
    if DROP == BEYOND:
        gone = (k >= rank)[None, :]
    elif DROP == ONE:
        gone = (k == rank)[None, :]
    elif DROP == WEAK:
        first = tl.load(experts_ptr + rows * K, mask=acts, other=0)
        most = tl.load(mass_ptr + rows * E + first, mask=acts, other=0.0)
        mass = tl.load(mass_ptr + rows[:, None] * E + experts, mask=slots & acts[:, None], other=0.0)
        ratio = tl.load(ratio_ptr + k, mask=k < K, other=0.0)
        gone = (mass < ratio[None, :] * most[:, None]) & (k > 0)[None, :]
    else:
        gone = _covered(rows, acts, mass_ptr, experts_ptr, tl.load(numbers_ptr), E, K, BT, BE, k)
    gone = slots & acts[:, None] & gone
    stays = slots & ~gone
    # counted by comparing, not by a cumulative sum: for two columns and one warp that ends Triton 3.6 and the process
    before = (k[None, :] < k[:, None])[None, :, :]
    place = tl.sum((before & stays[:, None, :]).to(tl.int32), 2)
    last = tl.sum(stays.to(tl.int32), 1)
    place = tl.where(stays, place, last[:, None] + tl.sum((before & gone[:, None, :]).to(tl.int32), 2))
    best = tl.sum(tl.where(stays & (place == 0), experts, 0), 1)
    raw = own_weights.to(tl.float32)
    if SCALED:
        scale = tl.load(scale_ptr + experts, mask=slots, other=1.0)
        raw = tl.div_rn(raw, scale)
    left = tl.where(stays, raw, 0.0)
    if REWEIGHS:
        total = tl.sum(tl.where(slots, raw, 0.0), 1)
        left = left * factor_of(total, tl.sum(left, 1))[:, None]
    if SCALED:
        left = left * scale
    touched = (tl.max(gone.to(tl.int32), 1) > 0)[:, None]
    out_at = rows[:, None] * K + place
    tl.store(out_experts_ptr + out_at, tl.where(gone, best[:, None], experts), mask=slots)
    tl.store(out_weights_ptr + out_at, tl.where(touched, left.to(own_weights.dtype), own_weights), mask=slots)


@triton.jit(do_not_specialize=["num_rows", "rank"])
def replace_kernel(
    choice_ptr,
    scores_ptr,
    experts_ptr,
    weights_ptr,
    scale_ptr,
    mask_ptr,
    live_ptr,
    out_experts_ptr,
    out_weights_ptr,
    scaling,
    num_rows,
    rank,
    MASKED: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
):
    """`static_mask` (MASKED): the experts of `mask_ptr`, bool `[E]`, are open to a row. `deny_rank`, mode=replace:
    every expert but its own of that rank."""
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    mine = rows < num_rows
    acts = mine & (tl.load(live_ptr + rows, mask=mine, other=0) != 0)
    if MASKED:
        e = tl.arange(0, BE)
        allowed = (tl.load(mask_ptr + e, mask=e < E, other=0) != 0)[None, :]
    else:
        allowed = ~listed(experts_ptr, rows, acts, rank, rank + 1, K, BT, BE)
    remap(
        rows,
        mine,
        acts,
        allowed,
        choice_ptr,
        scores_ptr,
        experts_ptr,
        weights_ptr,
        scale_ptr,
        out_experts_ptr,
        out_weights_ptr,
        scaling,
        0,
        0,
        E,
        K,
        K,
        K,
        False,
        False,
        RENORMALIZE,
        SCALED,
        BT,
        BE,
        BK,
    )


@triton.jit(do_not_specialize=["num_rows", "first_rank", "seed", "salt"])
def reassign_kernel(
    choice_ptr,
    scores_ptr,
    experts_ptr,
    weights_ptr,
    scale_ptr,
    numbers_ptr,
    lane_ptr,
    key_ptr,
    row_ptr,
    touched_ptr,
    out_experts_ptr,
    out_weights_ptr,
    scaling,
    num_rows,
    first_rank,
    seed,
    salt,
    OWN: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
):
    """OWN: a new expert has the weight that the router gives it, else that of the expert replaced."""
    e = tl.arange(0, BE)
    k = tl.arange(0, BK)
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    mine = rows < num_rows
    acts = mine & (tl.load(touched_ptr + rows, mask=mine, other=0) != 0)
    fraction = tl.load(numbers_ptr)
    key = tl.load(key_ptr + tl.load(lane_ptr + rows, mask=mine, other=0))
    number = mix_64(tl.load(row_ptr + rows, mask=mine, other=0))
    drawn = mix_64(key) ^ mix(number ^ (seed.to(tl.int64) & LOW_32))
    drawn = mix(drawn ^ (salt.to(tl.int64) & LOW_32))
    order = mix(drawn[:, None] ^ mix((e + 0x10000).to(tl.int64))[None, :])
    opened = tile(choice_ptr, rows, acts, E, BE, float("-inf")).to(tl.float32) > float("-inf")
    left = opened & ~listed(experts_ptr, rows, mine, 0, K, K, BT, BE)
    experts = tl.zeros([BT, BK], tl.int64)
    raw = tl.zeros([BT, BK], tl.float32)
    total = tl.zeros([BT], tl.float32)
    changed = tl.zeros([BT], tl.int1)
    for column in range(K):
        own = tl.load(experts_ptr + rows * K + column, mask=mine, other=0)
        draw = mix(drawn ^ mix(tl.full([BT], column + 1, tl.int64))).to(tl.float64) / TWO_32
        highest = tl.max(tl.where(left, order, -1), 1)
        other = tl.min(tl.where(left & (order == highest[:, None]), e[None, :], BE), 1)
        left = left & (e[None, :] != other[:, None])
        new = acts & (draw < fraction) & (column >= first_rank) & (highest >= 0)
        expert = tl.where(new, other.to(tl.int64), own)
        here = (k == column)[None, :]
        experts = tl.where(here, expert[:, None], experts)
        if OWN:  # else there are no scores to load
            score = tl.load(scores_ptr + rows * E + expert, mask=mine, other=0.0)
            raw = tl.where(here, score[:, None], raw)
            total += score
        changed = changed | new
    slots = mine[:, None] & (k < K)[None, :]
    at = rows[:, None] * K + k[None, :]
    weights = tl.load(weights_ptr + at, mask=slots, other=0.0)
    if OWN:
        if RENORMALIZE:
            mass = scaling
        elif SCALED:
            own_scale = tl.load(scale_ptr + tl.load(experts_ptr + at, mask=slots, other=0), mask=slots, other=1.0)
            mass = tl.sum(tl.div_rn(weights.to(tl.float32), own_scale), 1)
        else:
            mass = tl.sum(weights.to(tl.float32), 1)
        mass = mass + tl.zeros([BT], tl.float32)
        fresh = raw * factor_of(mass, total)[:, None]
        if SCALED:
            fresh = fresh * tl.load(scale_ptr + experts, mask=slots, other=0.0)
        weights = tl.where(changed[:, None], fresh.to(weights.dtype), weights)
    tl.store(out_experts_ptr + at, experts, mask=slots)
    tl.store(out_weights_ptr + at, weights, mask=slots)
