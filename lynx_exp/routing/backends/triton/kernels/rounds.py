"""`coverage` in rounds: a lane's rows spread over programs, two launches a round, and one that remaps.

The definition is `lynx_exp.routing.policies.coverage`. Programs of a launch add what their rows gain, or bid, to sums
of the lane by integer atomics, which are exact in any order; every program of the next launch draws the same conclusion
from them. What a launch writes no other program of it reads.

T token rows, E experts, K top-k, G lanes, N blocks of rows, R rounds, BT/BE/BW their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.coverage_kernel import powered
from lynx_exp.routing.backends.triton.kernels.remaps import remap
from lynx_exp.routing.backends.triton.kernels.tiles import (
    FIXED_POINT,
    LOWEST_INT64,
    first_best,
    fixed,
    lane_rows,
    lane_size,
    tile,
    top_of,
)
from lynx_exp.routing.policies import coverage as policy

ENOUGH = tl.constexpr(policy.ENOUGH)
FIRST = tl.constexpr(2**50)
"""More than any gain in fixed point: puts the candidates that stay before those that fill up."""


@triton.jit
def _sums(sums_ptr, round_number, part, lane, E: tl.constexpr, BE: tl.constexpr):
    """Where the gains (part 0) or bids (1) of a lane in a round, from 1 on, are: int64 `[R, 2, G, E]`."""
    return sums_ptr + (((round_number - 1) * 2 + part) * tl.num_programs(1) + lane) * E + tl.arange(0, BE)


@triton.jit
def _kept(kept_ptr, rounds_done, lane, E: tl.constexpr, BE: tl.constexpr):
    """Where the set of a lane after so many rounds is: int8 `[R, G, E]`."""
    return kept_ptr + (rounds_done * tl.num_programs(1) + lane) * E + tl.arange(0, BE)


@triton.jit
def _limit(first, least, number, rounds, HALVES: tl.constexpr):
    """The threshold of a round, from 1 on; `first`: the best gain of the first, float64 as `least`."""
    share = number.to(tl.float64)
    if HALVES:
        ratio = tl.exp2(-share)
    else:
        ratio = tl.minimum(least / tl.where(first > 0.0, first, 1.0), 1.0)
        ratio = tl.where(ratio > 0.0, ratio, 1.0)  # 0: a lane without live rows
        ratio = tl.where(ratio < 1.0, tl.exp2(tl.log2(ratio) * (share / rounds)), 1.0)
    return tl.where(number < rounds, tl.maximum(first * ratio, least), least)


@triton.jit
def _grown(
    keep,
    gains,
    bids,
    total,
    limit,
    budget,
    last,
    HALVES: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BE: tl.constexpr,
):
    """`[BE]` bool: the set after a round."""
    e = tl.arange(0, BE)
    left = (e < E) & ~keep
    wanted = left & (gains.to(tl.float64) / FIXED_POINT >= limit)
    most = tl.max(tl.where(left, gains, -1), 0)
    heaviest = tl.max(tl.where(left & (gains == most), total, LOWEST_INT64), 0)
    best = tl.min(tl.where(left & (gains == most) & (total == heaviest), e, BE), 0)
    kept = tl.sum(keep.to(tl.int32), 0)
    stays = wanted & (bids.to(tl.float64) / FIXED_POINT >= limit * ENOUGH)
    stays = stays | ((e == best) & (wanted | (kept < K)))
    count = tl.minimum(tl.sum(stays.to(tl.int32), 0), budget - kept)
    if HALVES:
        count = tl.where(last, tl.maximum(count, budget - kept), count)
    count = tl.where(last, tl.maximum(count, K - kept), count)
    order = tl.where(left, gains + tl.where(stays, FIRST, 0), -1)
    bound = tl.sum(tl.where(e == BE - tl.maximum(count, 1), tl.sort(order), 0), 0)
    above = order > bound
    tied = left & (order == bound)
    more = tl.maximum(count - tl.sum(above.to(tl.int32), 0), 1)
    return keep | ((above | (tied & top_of(tl.where(tied, total, -1), more, BE))) & left & (count > 0))


@triton.jit
def _after_the_last_launch(
    kept_ptr,
    sums_ptr,
    total_ptr,
    first_ptr,
    lane,
    number,
    rounds,
    least,
    budget,
    HALVES: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BE: tl.constexpr,
):
    """`[BE]` bool: the lane's set before round `number`, which is 2 or more."""
    e = tl.arange(0, BE)
    keep = tl.load(_kept(kept_ptr, number - 2, lane, E, BE), mask=e < E, other=0) > 0
    gains = tl.load(_sums(sums_ptr, number - 1, 0, lane, E, BE), mask=e < E, other=0)
    bids = tl.load(_sums(sums_ptr, number - 1, 1, lane, E, BE), mask=e < E, other=0)
    total = tl.load(total_ptr + lane * E + e, mask=e < E, other=0)
    limit = _limit(tl.load(first_ptr + lane), least, number - 1, rounds, HALVES)
    return _grown(keep, gains, bids, total, limit, budget, number > rounds, HALVES, E, K, BE)


@triton.jit
def _gain(
    mass_ptr,
    experts_ptr,
    rows,
    acts,
    keep,
    floor,
    power,
    UTILITY: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """`[BT, BE]` float64: what each expert would give each row; 0 for rows that do not act."""
    e = tl.arange(0, BE)
    own = tl.zeros([BT], tl.float64)
    for column in range(K):
        expert = tl.load(experts_ptr + rows * K + column, mask=acts, other=0)
        own += tl.load(mass_ptr + rows * E + expert, mask=acts, other=0.0).to(tl.float64)
    share = tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64) / tl.where(acts, own, 1.0)[:, None]
    left = acts[:, None] & keep[None, :] & (e < E)[None, :]
    covered = tl.zeros([BT], tl.float64)
    last = tl.zeros([BT], tl.float64)
    for _ in range(K):
        largest, at = first_best(share, left, e, BE)
        left = left & (e[None, :] != at[:, None])
        last = tl.maximum(largest, 0.0)
        covered += last
    more = tl.maximum(share - last[:, None], 0.0)
    if UTILITY == 0:
        more = tl.log(1.0 + more / (covered + floor)[:, None])
    elif UTILITY != 1:
        lost = tl.maximum(1.0 - covered, 0.0)
        more = powered(lost, power, UTILITY)[:, None] - powered(tl.maximum(lost[:, None] - more, 0.0), power, UTILITY)
    return tl.where(acts[:, None], more, 0.0)


@triton.jit(do_not_specialize=["num_rows", "guarantee"])
def start_kernel(
    choice_ptr,
    experts_ptr,
    lane_ptr,
    live_ptr,
    kept_ptr,
    num_rows,
    guarantee,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
):
    """Grid (N, G): the first `guarantee` experts of each row into the set."""
    lane = tl.program_id(1)
    rows, _mine, acts = lane_rows(tl.program_id(0) * BT, lane, num_rows, lane_ptr, live_ptr, BT)
    for column in range(guarantee):
        expert = tl.load(experts_ptr + rows * K + column, mask=acts, other=0)
        counts = tl.load(choice_ptr + rows * E + expert, mask=acts, other=float("-inf")) != float("-inf")
        tl.store(kept_ptr + lane * E + expert, tl.full([BT], 1, tl.int8), mask=acts & counts)


@triton.jit(do_not_specialize=["num_rows", "number", "rounds", "budget"])
def round_kernel(
    mass_ptr,
    experts_ptr,
    lane_ptr,
    live_ptr,
    numbers_ptr,
    kept_ptr,
    sums_ptr,
    total_ptr,
    first_ptr,
    num_rows,
    number,
    rounds,
    budget,
    BIDS: tl.constexpr,
    FIRST_ROUND: tl.constexpr,
    UTILITY: tl.constexpr,
    HALVES: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """Grid (N, G): sum the gains of the lane's rows of a block over the set before round `number`, or (BIDS) what they
    bid for the candidates among those. UTILITY as for `coverage.keep_coverage`."""
    lane = tl.program_id(1)
    e = tl.arange(0, BE)
    rows, _mine, acts = lane_rows(tl.program_id(0) * BT, lane, num_rows, lane_ptr, live_ptr, BT)
    if tl.max(acts.to(tl.int32), 0) > 0:
        least = tl.load(numbers_ptr) * lane_size(lane, num_rows, lane_ptr, live_ptr).to(tl.float64)
        floor, power = tl.load(numbers_ptr + 1), tl.load(numbers_ptr + 2)
        if BIDS | FIRST_ROUND:
            keep = tl.load(_kept(kept_ptr, number - 1, lane, E, BE), mask=e < E, other=0) > 0
        else:
            keep = _after_the_last_launch(
                kept_ptr, sums_ptr, total_ptr, first_ptr, lane, number, rounds, least, budget, HALVES, E, K, BE
            )
            tl.store(_kept(kept_ptr, number - 1, lane, E, BE), keep.to(tl.int8), mask=e < E)
        gain = _gain(mass_ptr, experts_ptr, rows, acts, keep, floor, power, UTILITY, E, K, BT, BE)
        if BIDS:
            gains = tl.load(_sums(sums_ptr, number, 0, lane, E, BE), mask=e < E, other=0)
            left = (e < E) & ~keep
            first = tl.max(tl.where(left, gains, -1), 0).to(tl.float64) / FIXED_POINT
            if FIRST_ROUND:
                tl.store(first_ptr + lane, first)
            else:
                first = tl.load(first_ptr + lane)
            wanted = left & (gains.to(tl.float64) / FIXED_POINT >= _limit(first, least, number, rounds, HALVES))
            _most, at = first_best(gain, acts[:, None] & wanted[None, :], e, BE)
            gain = tl.where(e[None, :] == at[:, None], gain, 0.0)
        elif FIRST_ROUND:
            mass = tl.sum(fixed(tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64)), 0)
            tl.atomic_add(total_ptr + lane * E + e, mass, mask=e < E)
        tl.atomic_add(_sums(sums_ptr, number, BIDS, lane, E, BE), tl.sum(fixed(gain), 0), mask=e < E)


@triton.jit(do_not_specialize=["num_rows", "rounds", "budget"])
def settle_kernel(
    choice_ptr,
    scores_ptr,
    experts_ptr,
    weights_ptr,
    scale_ptr,
    lane_ptr,
    live_ptr,
    numbers_ptr,
    kept_ptr,
    sums_ptr,
    total_ptr,
    first_ptr,
    out_experts_ptr,
    out_weights_ptr,
    scaling,
    num_rows,
    rounds,
    budget,
    HALVES: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BW: tl.constexpr,
):
    """Grid (N, G): the set after the last round, and the lane's rows of a block into it."""
    lane = tl.program_id(1)
    rows, mine, acts = lane_rows(tl.program_id(0) * BT, lane, num_rows, lane_ptr, live_ptr, BT)
    if tl.max(mine.to(tl.int32), 0) > 0:
        least = tl.load(numbers_ptr) * lane_size(lane, num_rows, lane_ptr, live_ptr).to(tl.float64)
        keep = _after_the_last_launch(
            kept_ptr, sums_ptr, total_ptr, first_ptr, lane, rounds + 1, rounds, least, budget, HALVES, E, K, BE
        )
        remap(
            rows,
            mine,
            acts,
            keep[None, :],
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
            BW,
        )
