"""The whole selection of a layer as one compiled call: `native`'s loops, one after the other.

T token rows, E experts, K top-k, G lanes, W columns afterwards.
"""

from __future__ import annotations

import numpy as np

from lynx_exp.routing.backends.numba import native, native_coverage
from lynx_exp.routing.backends.numba.native import (
    at,
    best_mask,
    lane_logits,
    lane_rows,
    lane_size,
    lane_sum,
    lane_votes,
    lynx_votes,
    njit,
)

VOTED, LYNX, OEA, XSHARE, COVERAGE, TOP_K = range(6)


@njit(cache=True)
def _most_wanted(total_GE, warm_TC, choice_TE, acts_T, lane_T, num_lanes, budget, most):  # type: ignore[no-untyped-def]
    """`[G, E]` bool: the first experts of each row, and the largest sums until `budget` are kept; all in lanes of more
    than `most` rows."""
    warm_GE = lane_votes(warm_TC, choice_TE, acts_T, acts_T, lane_T, num_lanes) > 0
    keep_GE = warm_GE | best_mask(np.where(warm_GE, np.inf, total_GE), total_GE, min(budget, total_GE.shape[1]))
    size_G = lane_size(acts_T, lane_T, num_lanes)
    for g in range(num_lanes):
        if size_G[g] > most:
            keep_GE[g] = True
    return keep_GE


@njit(cache=True)
def _first_k(new_experts_TK, new_weights_TK, experts_TK, weights_TK, acts_T, k, renormalize):  # type: ignore[no-untyped-def]
    """The rows of `acts_T` with their first `k` experts only."""
    new_experts_TK[:] = experts_TK
    new_weights_TK[:] = weights_TK
    dropped_TK = np.zeros(experts_TK.shape, np.bool_)
    for t in range(len(acts_T)):
        dropped_TK[t, k:] = acts_T[t]
    native.drop_slots_of(new_experts_TK, new_weights_TK, experts_TK, weights_TK, dropped_TK, renormalize)


def _compiled(stamp: int):  # type: ignore[no-untyped-def]
    """`select`, compiled again for another `stamp`: numba's cache looks at a function's own file and closure, but not
    at the files of the functions it calls."""

    @njit(cache=True)
    def select(
        keep,  # type: ignore[no-untyped-def]
        min_batch,
        slots,
        first,
        budget,
        most,
        variant,
        a,
        b,
        c,
        logits_at,
        scores_at,
        experts_at,
        weights_at,
        live_at,
        lane_at,
        new_experts_at,
        new_weights_at,
        rows,
        size,
        top_k,
        width,
        num_lanes,
        renormalize,
    ):
        """Write experts and weights, `[T, W]`; False, and nothing written, if no lane has `min_batch` live rows.

        The first ten are those of `Plan`; what ends in `_at` are addresses of contiguous arrays.
        """
        lane_T = at(lane_at, rows, np.int64(0))
        acts_T, somewhere = lane_rows(at(live_at, rows, np.uint8(0)), lane_T, num_lanes, min_batch)
        if not somewhere or stamp < 0:
            return False
        logits_TE = at(logits_at, (rows, size), np.float32(0))
        scores_TE = at(scores_at, (rows, size), np.float32(0))
        experts_TK = at(experts_at, (rows, top_k), np.int64(0))
        weights_TK = at(weights_at, (rows, top_k), np.float32(0))
        new_experts_TW = at(new_experts_at, (rows, width), np.int64(0))
        new_weights_TW = at(new_weights_at, (rows, width), np.float32(0))
        if keep == TOP_K:
            _first_k(new_experts_TW, new_weights_TW, experts_TK, weights_TK, acts_T, first, renormalize)
            return True
        if keep == VOTED:
            count = min(budget, size)
            keep_GE = native.most_voted(scores_TE, logits_TE, experts_TK, acts_T, lane_T, num_lanes, count)
        elif keep == LYNX:
            size_G = lane_size(acts_T, lane_T, num_lanes)
            keep_GE = lynx_votes(logits_TE, acts_T, lane_T, size_G, a, b, variant, top_k) > 0
        elif keep == OEA:
            keep_GE = lane_votes(experts_TK[:, :first], logits_TE, acts_T, acts_T, lane_T, num_lanes) > 0
        elif keep == XSHARE:
            if variant:
                total_GE = lane_logits(logits_TE, acts_T, lane_T, num_lanes)
            else:
                total_GE = lane_sum(scores_TE, acts_T, lane_T, num_lanes)
            keep_GE = _most_wanted(total_GE, experts_TK[:, :first], logits_TE, acts_T, lane_T, num_lanes, budget, most)
        else:
            open_TE = logits_TE > -np.inf
            keep_GE = native_coverage.coverage(
                scores_TE, open_TE, experts_TK, acts_T, lane_T, num_lanes, budget, a, b, c, first
            )
        native.restrict_into(
            new_experts_TW,
            new_weights_TW,
            logits_TE,
            scores_TE,
            experts_TK,
            weights_TK,
            keep_GE,
            lane_T,
            acts_T,
            renormalize,
            slots if slots > 0 else top_k,
        )
        return True

    return select


select = _compiled(native.stamp(native.__file__, native_coverage.__file__))
