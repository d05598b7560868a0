"""The launch that keeps and remaps, after those of `tile_parts`; alone where all rows are one block, or where nothing
is summed (`random_keep`).

T token rows, E experts, K top-k, G lanes, N blocks of rows, W columns afterwards, BT/BE/BN/BW their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.lynx_kernel import voted_by
from lynx_exp.routing.backends.triton.kernels.remaps import remap, substitute
from lynx_exp.routing.backends.triton.kernels.sums import ASKED, BINNED, DRAWN, TOTAL, asked_by, kept_by
from lynx_exp.routing.backends.triton.kernels.tile_parts import added
from lynx_exp.routing.backends.triton.kernels.tiles import FIXED_POINT, lane_rows


@triton.jit
def _asked_by_all(
    rows,
    acts,
    size,
    choice_ptr,
    view_ptr,
    experts_ptr,
    weights_ptr,
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
    """(votes, totals) of a lane whose rows are all here, `[BE]` int64; `size`: how many of them are live."""
    size = tl.maximum(size, 1).to(tl.float64)
    votes, total = asked_by(
        rows, acts, size, choice_ptr, view_ptr, experts_ptr, weights_ptr, asked, a, b, KEEP, VARIANT, E, K, BT, BE
    )
    if KEEP == BINNED:
        pulled = total.to(tl.float64) / FIXED_POINT
        votes += voted_by(view_ptr, rows, acts, pulled, size, a.to(tl.float32), b, VARIANT, E, K, BE)
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
    BN: tl.constexpr,
    BW: tl.constexpr,
):
    """Keep, then remap: grid (N, G), a program for the lane's rows of each block. SPREAD: N is above 1, and what all
    rows ask for is at `sums_ptr`."""
    lane = tl.program_id(1)
    rows, mine, acts = lane_rows(tl.program_id(0) * BT, lane, num_rows, lane_ptr, live_ptr, BT)
    if tl.max(mine.to(tl.int32), 0) > 0:
        a, b = tl.load(numbers_ptr), tl.load(numbers_ptr + 1)
        votes = tl.zeros([BE], tl.int64)
        total = tl.zeros([BE], tl.int64)
        size = tl.sum(acts.to(tl.int32), 0)
        if KEEP != DRAWN:  # a draw needs nothing of the rows
            if SPREAD:
                if (KEEP != TOTAL) | (asked > 0):
                    votes += added(sums_ptr, 0, lane, num_rows, lane_ptr, live_ptr, E, BT, BE, BN)[0]
                if (KEEP != ASKED) & (KEEP != BINNED):
                    more, size = added(sums_ptr, 1, lane, num_rows, lane_ptr, live_ptr, E, BT, BE, BN)
                    total += more
            else:
                votes, total = _asked_by_all(
                    rows,
                    acts,
                    size,
                    choice_ptr,
                    view_ptr,
                    experts_ptr,
                    weights_ptr,
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
