"""The greedy loop of `lynx_exp.routing.policies.coverage`, compiled: see `native`.

T token rows, E experts, K top-k, G lanes, R live rows of a lane.
"""

from __future__ import annotations

import numpy as np

from lynx_exp.routing.backends.numba.native import FIXED_POINT, lane_sum, njit


@njit(cache=True)
def _lost(covered, power):  # type: ignore[no-untyped-def]
    """What a token loses, to the power; the default, 4, by multiplication."""
    lost = max(1.0 - covered, 0.0)
    return (lost * lost) * (lost * lost) if power == 4.0 else lost**power


@njit(cache=True)
def _gain(share_ET, least_T, covered_T, lost_T, rows_R, e, floor, power):  # type: ignore[no-untyped-def]
    """Fixed-point gain of expert `e` for the rows `rows_R`, as `lynx_exp.routing.policies.coverage` defines it."""
    gain = 0
    for t in rows_R:
        more = share_ET[e, t] - least_T[t]
        if more > 0.0:
            if floor > 0.0:
                more = np.log1p(more / (covered_T[t] + floor))
            elif power != 1.0:
                more = lost_T[t] - _lost(covered_T[t] + more, power)
            gain += int(np.rint(more * FIXED_POINT))
    return gain


@njit(cache=True)
def _add(keep_E, e, share_ET, open_TE, best_TK, least_T, covered_T, lost_T, found_T, rows_R, power):  # type: ignore[no-untyped-def]
    """Keep expert `e`."""
    keep_E[e] = True
    top_k = best_TK.shape[1]
    for t in rows_R:
        found_T[t] += open_TE[t, e]
        value = share_ET[e, t]
        if value > least_T[t]:
            covered_T[t] = 0.0
            for k in range(top_k):
                if value > best_TK[t, k]:
                    best_TK[t, k], value = value, best_TK[t, k]
                covered_T[t] += best_TK[t, k]
            lost_T[t] = _lost(covered_T[t], power)
            least_T[t] = best_TK[t, top_k - 1]


@njit(cache=True)
def coverage(mass_TE, open_TE, experts_TK, live_T, lane_T, num_lanes, budget, tolerance, floor, power, guarantee):  # type: ignore[no-untyped-def]
    """`[G, E]` bool: `lynx_exp.routing.policies.coverage`, by lazy greedy: gains only shrink as the set grows, so an
    old gain is an upper bound, and an expert whose fresh gain beats all bounds is the best."""
    rows, size = mass_TE.shape
    top_k = experts_TK.shape[1]
    keep_GE = np.zeros((num_lanes, size), np.bool_)
    share_ET = np.empty((size, rows), np.float64)
    best_TK = np.zeros((rows, top_k), np.float64)
    least_T, covered_T, lost_T = np.zeros(rows, np.float64), np.zeros(rows, np.float64), np.ones(rows, np.float64)
    found_T = np.zeros(rows, np.int64)
    total_GE = lane_sum(mass_TE, live_T, lane_T, num_lanes)
    for t in range(rows):
        if live_T[t]:
            own = 0.0
            for k in range(top_k):
                own += np.float64(mass_TE[t, experts_TK[t, k]])
            found_T[t] = top_k  # as many as it needs, less those that it will find
            for e in range(size):
                share_ET[e, t] = np.float64(mass_TE[t, e]) / own
                found_T[t] -= open_TE[t, e] and found_T[t] > 0
    gain_E = np.empty(size, np.int64)
    fresh_E = np.empty(size, np.int64)
    for g in range(num_lanes):
        rows_R = np.nonzero(live_T & (lane_T == g))[0]
        if len(rows_R) == 0:
            continue
        keep_E = keep_GE[g]
        for r in rows_R:
            for k in range(guarantee):
                if open_TE[r, experts_TK[r, k]] and not keep_E[experts_TK[r, k]]:
                    _add(
                        keep_E,
                        experts_TK[r, k],
                        share_ET,
                        open_TE,
                        best_TK,
                        least_T,
                        covered_T,
                        lost_T,
                        found_T,
                        rows_R,
                        power,
                    )
        kept = int(keep_E.sum())
        least = tolerance * len(rows_R)
        for e in range(size):
            gain_E[e] = _gain(share_ET, least_T, covered_T, lost_T, rows_R, e, floor, power)
            fresh_E[e] = kept
        while kept < size:
            best = -1
            for e in range(size):
                if keep_E[e]:
                    continue
                tied = best >= 0 and gain_E[e] == gain_E[best]
                if best < 0 or gain_E[e] > gain_E[best] or (tied and total_GE[g, e] > total_GE[g, best]):
                    best = e
            if fresh_E[best] != kept:
                gain_E[best] = _gain(share_ET, least_T, covered_T, lost_T, rows_R, best, floor, power)
                fresh_E[best] = kept
                continue
            if kept >= budget or gain_E[best] / FIXED_POINT < least:
                full = True
                for r in rows_R:
                    full = full and found_T[r] >= top_k
                if full:
                    break
            _add(keep_E, best, share_ET, open_TE, best_TK, least_T, covered_T, lost_T, found_T, rows_R, power)
            kept += 1
    return keep_GE
