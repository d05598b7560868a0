"""Lanes whose rows are spread over programs: a launch that sums what the rows ask for, and one that keeps and remaps.

`sum_kernel` leaves the sums of each lane's rows of each block of BT; every program of `lane_block_kernel` adds those of
its lane, so nothing has to be zeroed, waited for or added in any order. Where lanes are small, or nothing is summed
(`random_keep`), the second launch alone is enough.

T token rows, E experts, K top-k, G lanes, N blocks of rows, BT/BE/BW tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.kernels.sums import ASKED, DRAWN, asked_by, kept_by
from lynx_exp.routing.kernels.tiles import first_best, lane_rows, remap


@triton.jit(do_not_specialize=["num_rows", "first"])
def sum_kernel(
    mass_ptr,
    experts_ptr,
    weights_ptr,
    lane_ptr,
    live_ptr,
    numbers_ptr,
    sums_ptr,  # int64 [G, N, 2, E]
    num_rows,
    first,
    KEEP: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """Grid (N, G). A block without live rows of the lane is left unwritten, and not read."""
    block, lane = tl.program_id(0), tl.program_id(1)
    rows, _mine, acts = lane_rows(block * BT, lane, num_rows, lane_ptr, live_ptr, BT)
    if tl.max(acts.to(tl.int32), 0) > 0:
        confidence = tl.load(numbers_ptr)
        votes, mass = asked_by(rows, acts, mass_ptr, experts_ptr, weights_ptr, first, confidence, KEEP, E, K, BT, BE)
        e = tl.arange(0, BE)
        at = sums_ptr + (lane * tl.num_programs(0) + block) * 2 * E + e
        tl.store(at, votes, mask=e < E)
        if KEEP != ASKED:
            tl.store(at + E, mass, mask=e < E)


@triton.jit
def _substitute(
    rows,
    mine,
    acts,
    keep,  # [BE] bool
    experts_ptr,
    alike_ptr,
    out_experts_ptr,
    primary,
    threshold,
    E: tl.constexpr,
    K: tl.constexpr,
    BE: tl.constexpr,
):
    """`sere`: an expert outside the kept set gives way to the most similar one inside."""
    e = tl.arange(0, BE)
    for column in range(K):
        expert = tl.load(experts_ptr + rows * K + column, mask=mine, other=0)
        if column >= primary:
            alike = tl.load(
                alike_ptr + expert[:, None] * E + e[None, :], mask=acts[:, None] & keep[None, :], other=-1.0
            )
            nearest, at = first_best(alike, keep[None, :], e, BE)
            kept = tl.max((keep[None, :] & (e[None, :] == expert.to(tl.int32)[:, None])).to(tl.int32), 1) > 0
            gives_way = acts & ~kept & (nearest >= threshold)
            expert = tl.where(gives_way, at.to(tl.int64), expert)
        tl.store(out_experts_ptr + rows * K + column, expert, mask=mine)


@triton.jit
def _sums(
    lane,
    mass_ptr,
    experts_ptr,
    weights_ptr,
    lane_ptr,
    live_ptr,
    sums_ptr,
    num_rows,
    first,
    confidence,
    KEEP: tl.constexpr,
    SPREAD: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """(votes, mass) of the whole lane, `[BE]` int64, from what `sum_kernel` left (SPREAD), or from the rows."""
    e = tl.arange(0, BE)
    votes = tl.zeros([BE], tl.int64)
    mass = tl.zeros([BE], tl.int64)
    for start in range(0, num_rows, BT):
        rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
        if tl.max(acts.to(tl.int32), 0) > 0:
            if SPREAD:
                at = sums_ptr + (lane * tl.num_programs(0) + start // BT) * 2 * E + e
                votes += tl.load(at, mask=e < E, other=0)
                if KEEP != ASKED:
                    mass += tl.load(at + E, mask=e < E, other=0)
            else:
                more, heavier = asked_by(
                    rows, acts, mass_ptr, experts_ptr, weights_ptr, first, confidence, KEEP, E, K, BT, BE
                )
                votes += more
                mass += heavier
    return votes, mass


@triton.jit(do_not_specialize=["num_rows", "first", "budget", "salt"])
def lane_block_kernel(
    choice_ptr,
    scores_ptr,
    mass_ptr,
    experts_ptr,
    weights_ptr,
    scale_ptr,
    lane_ptr,
    live_ptr,
    key_ptr,
    numbers_ptr,
    alike_ptr,
    sums_ptr,
    out_experts_ptr,
    out_weights_ptr,
    scaling,
    num_rows,
    first,
    budget,
    salt,
    KEEP: tl.constexpr,
    SPREAD: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
):
    """Keep, then remap: grid (N, G), a program for the lane's rows of each block (SPREAD), or (1, G), for all."""
    lane = tl.program_id(1)
    start, stop = (0, num_rows)
    if SPREAD:
        start = tl.program_id(0) * BT
        stop = tl.minimum(start + BT, num_rows)
    _rows, mine, _acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
    if (SPREAD == 0) | (tl.max(mine.to(tl.int32), 0) > 0):
        number = tl.load(numbers_ptr)
        votes = tl.zeros([BE], tl.int64)
        mass = tl.zeros([BE], tl.int64)
        if KEEP != DRAWN:
            votes, mass = _sums(
                lane,
                mass_ptr,
                experts_ptr,
                weights_ptr,
                lane_ptr,
                live_ptr,
                sums_ptr,
                num_rows,
                first,
                number,
                KEEP,
                SPREAD,
                E,
                K,
                BT,
                BE,
            )
        keep = kept_by(votes, mass, lane, key_ptr, salt, budget, KEEP, E, BE)
        for at in range(start, stop, BT):
            rows, mine, acts = lane_rows(at, lane, num_rows, lane_ptr, live_ptr, BT)
            if tl.max(mine.to(tl.int32), 0) > 0:
                if KEEP == ASKED:
                    threshold = number.to(tl.float32)
                    _substitute(
                        rows, mine, acts, keep, experts_ptr, alike_ptr, out_experts_ptr, first, threshold, E, K, BE
                    )
                else:
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
                        BK,
                    )
