"""Lanes whose rows are spread over programs: the launch that keeps and remaps, after those of `parts`.

Where lanes are small, or nothing is summed (`random_keep`), this launch alone is enough.

T token rows, E experts, K top-k, G lanes, N blocks of rows, W columns afterwards, BT/BE/BW their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.lynx_kernel import keep_lynx
from lynx_exp.routing.backends.triton.kernels.remaps import remap, substitute
from lynx_exp.routing.backends.triton.kernels.sums import BINNED, DRAWN, TOTAL, asked_by, kept_by
from lynx_exp.routing.backends.triton.kernels.tile_parts import added
from lynx_exp.routing.backends.triton.kernels.tiles import lane_rows, lane_size


@triton.jit
def _asked_by_all(
    lane,
    view_ptr,
    experts_ptr,
    weights_ptr,
    lane_ptr,
    live_ptr,
    num_rows,
    asked,
    a,
    b,
    KEEP: tl.constexpr,
    VARIANT: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """(votes, totals) of the whole lane, `[BE]` int64, by one program."""
    votes = tl.zeros([BE], tl.int64)
    total = tl.zeros([BE], tl.int64)
    if KEEP == BINNED:
        votes += keep_lynx(view_ptr, lane_ptr, live_ptr, lane, num_rows, a, b, VARIANT, E, K, BT, BE)
    else:
        for start in range(0, num_rows, BT):
            rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
            if tl.max(acts.to(tl.int32), 0) > 0:
                more, heavier = asked_by(
                    rows, acts, 1.0, view_ptr, experts_ptr, weights_ptr, asked, a, b, KEEP, VARIANT, E, K, BT, BE
                )
                votes += more
                total += heavier
    return votes, total


@triton.jit(do_not_specialize=["num_rows", "asked", "first", "budget", "limit", "salt"])
def lane_block_kernel(
    choice_ptr,
    scores_ptr,
    view_ptr,
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
    asked,
    first,
    budget,
    limit,
    salt,
    KEEP: tl.constexpr,
    VARIANT: tl.constexpr,
    SPREAD: tl.constexpr,
    SUBSTITUTES: tl.constexpr,
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
    """Keep, then remap: grid (N, G), a program for the lane's rows of each block (SPREAD), or (1, G), for all."""
    lane = tl.program_id(1)
    start, stop = (0, num_rows)
    if SPREAD:
        start = tl.program_id(0) * BT
        stop = tl.minimum(start + BT, num_rows)
    _rows, mine, _acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
    if (SPREAD == 0) | (tl.max(mine.to(tl.int32), 0) > 0):
        a, b = tl.load(numbers_ptr), tl.load(numbers_ptr + 1)
        votes = tl.zeros([BE], tl.int64)
        total = tl.zeros([BE], tl.int64)
        size = 0
        if KEEP == TOTAL:
            size = lane_size(lane, num_rows, lane_ptr, live_ptr)
        if KEEP != DRAWN:
            if SPREAD:
                votes += added(sums_ptr, 0, lane, num_rows, lane_ptr, live_ptr, E, BT, BE)
                total += added(sums_ptr, 1, lane, num_rows, lane_ptr, live_ptr, E, BT, BE)
            else:
                votes, total = _asked_by_all(
                    lane,
                    view_ptr,
                    experts_ptr,
                    weights_ptr,
                    lane_ptr,
                    live_ptr,
                    num_rows,
                    asked,
                    a,
                    b,
                    KEEP,
                    VARIANT,
                    E,
                    K,
                    BT,
                    BE,
                )
        keep = kept_by(votes, total, size, lane, key_ptr, salt, budget, limit, KEEP, E, BE)
        for at in range(start, stop, BT):
            rows, mine, acts = lane_rows(at, lane, num_rows, lane_ptr, live_ptr, BT)
            if tl.max(mine.to(tl.int32), 0) > 0:
                if SUBSTITUTES:
                    substitute(
                        rows,
                        mine,
                        acts,
                        keep,
                        experts_ptr,
                        alike_ptr,
                        out_experts_ptr,
                        first,
                        a.to(tl.float32),
                        E,
                        K,
                        BE,
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
                        first,
                        limit,
                        E,
                        K,
                        SLOTS,
                        W,
                        OWN_FIRST,
                        RANKED,
                        RENORMALIZE,
                        SCALED,
                        BT,
                        BE,
                        BW,
                    )
