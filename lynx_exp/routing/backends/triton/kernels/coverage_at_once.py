"""Which experts a lane keeps under `coverage`, where all of its live rows fit into one tile: the greedy loop with all
that it remembers in registers. `coverage_kernel` is the same loop for lanes of more rows, which remembers in memory.

The definition is `lynx_exp.routing.policies.coverage`.

T token rows, E experts, K top-k, BT/BE their tile sizes, BALL T as a power of 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.coverage_kernel import powered
from lynx_exp.routing.backends.triton.kernels.tiles import (
    FIXED_POINT,
    LOWEST_INT64,
    first_best,
    fixed,
    lane_rows,
    listed,
    tile,
)


@triton.jit
def live_rows(lane, num_rows, lane_ptr, live_ptr, BALL: tl.constexpr, BT: tl.constexpr):
    """(the first BT live rows of the lane, in order, -1 where there are no more, and how many there are in all)."""
    every, _mine, acts = lane_rows(0, lane, num_rows, lane_ptr, live_ptr, BALL)
    place = tl.cumsum(acts.to(tl.int32), 0) - 1
    here = acts[None, :] & (place[None, :] == tl.arange(0, BT)[:, None])
    return tl.max(tl.where(here, every[None, :], -1), 1), tl.sum(acts.to(tl.int32), 0)


@triton.jit
def keep_at_once(
    mass_ptr,
    choice_ptr,
    experts_ptr,
    rows,  # [BT], -1 where there is none
    guarantee,
    budget,
    least,
    floor,
    power,
    UTILITY: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
):
    """`[BE]` int32: 1 for the experts kept; arguments as of `coverage_kernel.keep_coverage`."""
    e = tl.arange(0, BE)
    acts = rows >= 0
    rows = tl.maximum(rows, 0)
    mass = tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64)
    opened = tile(choice_ptr, rows, acts, E, BE, float("-inf")).to(tl.float32) > float("-inf")
    own = tl.zeros([BT], tl.float64)
    for column in tl.static_range(K):
        expert = tl.load(experts_ptr + rows * K + column, mask=acts, other=0)
        own += tl.load(mass_ptr + rows * E + expert, mask=acts, other=0.0).to(tl.float64)
    share = mass / tl.where(acts, own, 1.0)[:, None]
    total = tl.sum(fixed(mass), 0)
    size = tl.sum(acts.to(tl.int32), 0)

    keep = (e >= E).to(tl.int32)
    # a row's K best of the set: what it holds of it, and how many of those there are
    inside = (e < 0)[None, :] & acts[:, None]
    count = tl.zeros([BT], tl.int32)
    found = tl.maximum(K - tl.sum(opened.to(tl.int32), 1), 0)  # what it cannot find counts as found
    if guarantee > 0:
        asked = listed(experts_ptr, rows, acts, 0, guarantee, K, BT, BE) & opened
        keep = tl.maximum(keep, tl.max(asked.to(tl.int32), 0))
        left = acts[:, None] & ((keep > 0) & (e < E))[None, :]
        found += tl.sum((left & opened).to(tl.int32), 1)
        for _ in range(K):
            largest, at = first_best(share, left, e, BE)
            left = left & (e[None, :] != at[:, None])
            inside = inside | ((e[None, :] == at[:, None]) & (largest > 0.0)[:, None])
            count += (largest > 0.0).to(tl.int32)

    least = least * size.to(tl.float64)
    grows = size > 0
    while grows:
        lowest = tl.min(tl.where(inside, share, float("inf")), 1)
        last = tl.where(count < K, 0.0, lowest)
        more = tl.maximum(share - last[:, None], 0.0)
        covered = tl.sum(tl.where(inside, share, 0.0), 1)
        if UTILITY == 0:
            more = tl.log(1.0 + more / (covered + floor)[:, None])
        elif UTILITY != 1:
            lost = tl.maximum(1.0 - covered, 0.0)
            more = powered(lost, power, UTILITY)[:, None] - powered(
                tl.maximum(lost[:, None] - more, 0.0), power, UTILITY
            )
        gain = tl.where(keep > 0, -1, tl.sum(fixed(more), 0))
        short = tl.sum((acts & (found < K)).to(tl.int32), 0)
        most = tl.max(gain, 0)
        heaviest = tl.max(tl.where(gain == most, total, LOWEST_INT64), 0)
        added = tl.min(tl.where((gain == most) & (total == heaviest), e, BE), 0)
        kept = tl.sum(keep, 0) - (BE - E)
        enough = (kept >= budget) | (most.to(tl.float64) / FIXED_POINT < least)
        grows = ((short > 0) | (enough == 0)) & (kept < E)
        here = e == added
        keep = tl.where(grows & here, 1, keep)
        # after the last round none of this is read
        gained = tl.sum(tl.where(here[None, :], share, 0.0), 1)
        found += tl.sum((here[None, :] & opened).to(tl.int32), 1)
        enters = acts & (gained > last)
        leaver = tl.min(tl.where(inside & (share == lowest[:, None]), e[None, :], BE), 1)
        leaver = tl.where(count < K, BE, leaver)
        changed = (inside & (e[None, :] != leaver[:, None])) | here[None, :]
        inside = (enters[:, None] & changed) | ((enters == 0)[:, None] & inside)
        count = tl.minimum(count + enters.to(tl.int32), K)
    return tl.where(e < E, keep, 0)
