"""Which experts a lane keeps under `coverage`, inside a Triton kernel: the greedy loop of the lane's program.

The definition is `lynx_exp.routing.policies.coverage`. Each round adds the last expert to what is remembered of the
rows and, in the same walk over them, sums the gains of all others.

T token rows, E experts, K top-k, BT/BE/BK their tile sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.tiles import (
    FIXED_POINT,
    LOWEST_INT64,
    first_best,
    fixed,
    lane_rows,
    listed,
    not_shut,
    tile,
)

NEARLY_ZERO = tl.constexpr(1e-300)


@triton.jit
def _start_coverage(
    mass_ptr,
    choice_ptr,
    experts_ptr,
    state_ptr,
    rows,
    acts,
    keep,
    guarantee,
    E: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
):
    """Write what `keep_coverage` remembers of each row: its K best shares kept, its own mass, its open experts kept."""
    e = tl.arange(0, BE)
    k = tl.arange(0, BK)
    own = tl.zeros([BT], tl.float64)
    for column in range(K):
        expert = tl.load(experts_ptr + rows * K + column, mask=acts, other=0)
        own += tl.load(mass_ptr + rows * E + expert, mask=acts, other=0.0).to(tl.float64)
    best = tl.zeros([BT, BK], tl.float64)
    opened = tile(choice_ptr, rows, acts, E, BE, float("-inf")).to(tl.float32) > float("-inf")
    found = tl.maximum(K - tl.sum(opened.to(tl.float64), 1), 0.0)  # what it cannot find counts as found
    if guarantee > 0:
        share = tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64) / tl.where(acts, own, 1.0)[:, None]
        left = acts[:, None] & (keep > 0)[None, :] & (e < E)[None, :]
        found += tl.sum((left & opened).to(tl.float64), 1)
        for column in range(K):
            largest, at = first_best(share, left, e, BE)
            left = left & (e[None, :] != at[:, None])
            best = tl.where((k == column)[None, :], tl.maximum(largest, 0.0)[:, None], best)
    at = state_ptr + rows * (BK + 2)
    tl.store(at[:, None] + k[None, :], best, mask=acts[:, None] & (k < K)[None, :])
    tl.store(at + BK, own, mask=acts)
    tl.store(at + BK + 1, found, mask=acts)


@triton.jit
def powered(value, power, UTILITY: tl.constexpr):
    """`value ** power`, at least 0."""
    if UTILITY > 0:
        result = value
        for _ in tl.static_range(UTILITY - 1):
            result = result * value
    else:
        result = tl.exp2(power * tl.log2(tl.maximum(value, NEARLY_ZERO)))
    return result


@triton.jit
def keep_coverage(
    mass_ptr,
    choice_ptr,
    experts_ptr,
    lane_ptr,
    live_ptr,
    state_ptr,
    lane,
    num_rows,
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
    BK: tl.constexpr,
):
    """`least`: gain per row that it takes to go on. UTILITY: 0 log; n mass with power n; -1 mass with another power.

    `state_ptr`: float64 `[T, BK + 2]` to remember rows in. Nothing there passes between programs, only between the
    threads of one, hence the barriers."""
    e = tl.arange(0, BE)
    k = tl.arange(0, BK)
    total = tl.zeros([BE], tl.int64)
    keep = (e >= E).to(tl.int32)
    size = tl.zeros([], tl.int32)
    for start in range(0, num_rows, BT):
        rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
        if tl.max(acts.to(tl.int32), 0) > 0:
            size += tl.sum(acts.to(tl.int32), 0)
            total += tl.sum(fixed(tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64)), 0)
            if guarantee > 0:
                asked = listed(experts_ptr, rows, acts, 0, guarantee, K, BT, BE)
                asked = asked & not_shut(choice_ptr, rows, acts, E, BE)
                keep = tl.maximum(keep, tl.max(asked.to(tl.int32), 0))
    for start in range(0, num_rows, BT):
        rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
        if tl.max(acts.to(tl.int32), 0) > 0:
            _start_coverage(mass_ptr, choice_ptr, experts_ptr, state_ptr, rows, acts, keep, guarantee, E, K, BT, BE, BK)
    tl.debug_barrier()
    least = least * size.to(tl.float64)
    added = tl.full([], -1, tl.int32)
    grows = size > 0
    while grows:
        gain = tl.zeros([BE], tl.int64)
        short = tl.zeros([], tl.int32)
        for start in range(0, num_rows, BT):
            rows, _mine, acts = lane_rows(start, lane, num_rows, lane_ptr, live_ptr, BT)
            if tl.max(acts.to(tl.int32), 0) > 0:
                at = state_ptr + rows * (BK + 2)
                slots = acts[:, None] & (k < K)[None, :]
                best = tl.load(at[:, None] + k[None, :], mask=slots, other=0.0)
                own = tl.load(at + BK, mask=acts, other=1.0)
                found = tl.load(at + BK + 1, mask=acts, other=0.0)
                last = tl.min(tl.where(slots, best, float("inf")), 1)
                if added >= 0:
                    tl.debug_barrier()
                    share = tl.load(mass_ptr + rows * E + added, mask=acts, other=0.0).to(tl.float64) / own
                    worst = tl.min(tl.where(slots & (best == last[:, None]), k[None, :], BK), 1)
                    better = (k[None, :] == worst[:, None]) & (share > last)[:, None]
                    best = tl.where(better, share[:, None], best)
                    opened = tl.load(choice_ptr + rows * E + added, mask=acts, other=float("-inf")).to(tl.float32)
                    found += (opened > float("-inf")).to(tl.float64)
                    tl.store(at[:, None] + k[None, :], best, mask=slots)
                    tl.store(at + BK + 1, found, mask=acts)
                    last = tl.min(tl.where(slots, best, float("inf")), 1)
                short += tl.sum((acts & (found < K)).to(tl.int32), 0)
                share_e = tile(mass_ptr, rows, acts, E, BE, 0.0).to(tl.float64) / own[:, None]
                more = tl.maximum(share_e - tl.where(acts, last, 0.0)[:, None], 0.0)
                covered = tl.sum(best, 1)
                if UTILITY == 0:
                    more = tl.log(1.0 + more / (covered + floor)[:, None])
                elif UTILITY != 1:
                    lost = tl.maximum(1.0 - covered, 0.0)
                    left = tl.maximum(lost[:, None] - more, 0.0)
                    more = powered(lost, power, UTILITY)[:, None] - powered(left, power, UTILITY)
                gain += tl.sum(fixed(more), 0)
        tl.debug_barrier()
        gain = tl.where(keep > 0, -1, gain)
        most = tl.max(gain, 0)
        heaviest = tl.max(tl.where(gain == most, total, LOWEST_INT64), 0)
        added = tl.min(tl.where((gain == most) & (total == heaviest), e, BE), 0)
        kept = tl.sum(keep, 0) - (BE - E)
        enough = (kept >= budget) | (most.to(tl.float64) / FIXED_POINT < least)
        grows = ((short > 0) | (enough == 0)) & (kept < E)
        keep = tl.where(grows & (e == added), 1, keep)
    return tl.where(e < E, keep, 0)
