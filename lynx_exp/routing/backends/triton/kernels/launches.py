"""The two kernels of `coverage`: one program a lane, and one program a block of rows.

T token rows, E experts, K top-k, G lanes, BT/BE/BK their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.coverage_at_once import keep_at_once, live_rows
from lynx_exp.routing.backends.triton.kernels.coverage_kernel import keep_coverage
from lynx_exp.routing.backends.triton.kernels.remaps import remap


@triton.jit(do_not_specialize=["num_rows", "first", "budget"])
def lane_kernel(
    choice_ptr,
    view_ptr,
    experts_ptr,
    lane_ptr,
    live_ptr,
    numbers_ptr,
    state_ptr,
    kept_ptr,
    num_rows,
    first,
    budget,
    VARIANT: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
    BALL: tl.constexpr,
    BLOOP: tl.constexpr,
):
    """Grid (G,): leave the lane's set at `kept_ptr` for `rows_kernel`. BT: rows up to which a lane is served at once;
    others are in tiles of BLOOP, and remembered at `state_ptr`."""
    lane = tl.program_id(0)
    e = tl.arange(0, BE)
    a, b, c = tl.load(numbers_ptr), tl.load(numbers_ptr + 1), tl.load(numbers_ptr + 2)
    rows, size = live_rows(lane, num_rows, lane_ptr, live_ptr, BALL, BT)
    keep = tl.zeros([BE], tl.int32)
    if size <= BT:
        keep += keep_at_once(view_ptr, choice_ptr, experts_ptr, rows, first, budget, a, b, c, VARIANT, E, K, BT, BE)
    elif BALL > BT:
        keep += keep_coverage(
            view_ptr,
            choice_ptr,
            experts_ptr,
            lane_ptr,
            live_ptr,
            state_ptr,
            lane,
            num_rows,
            first,
            budget,
            a,
            b,
            c,
            VARIANT,
            E,
            K,
            BLOOP,
            BE,
            BK,
        )
    tl.store(kept_ptr + lane * E + e, keep.to(tl.int8), mask=e < E)


@triton.jit(do_not_specialize=["num_rows"])
def rows_kernel(
    choice_ptr,
    scores_ptr,
    experts_ptr,
    weights_ptr,
    scale_ptr,
    lane_ptr,
    live_ptr,
    kept_ptr,
    out_experts_ptr,
    out_weights_ptr,
    scaling,
    num_rows,
    E: tl.constexpr,
    K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
):
    """Remap into the sets that `lane_kernel` left at `kept_ptr`, int8 `[G, E]`."""
    e = tl.arange(0, BE)
    rows = tl.program_id(0) * BT + tl.arange(0, BT)
    mine = rows < num_rows
    acts = mine & (tl.load(live_ptr + rows, mask=mine, other=0) != 0)
    lane = tl.load(lane_ptr + rows, mask=acts, other=0)
    keep = tl.load(kept_ptr + lane[:, None] * E + e[None, :], mask=acts[:, None] & (e < E)[None, :], other=0) > 0
    remap(
        rows,
        mine,
        acts,
        keep,
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
