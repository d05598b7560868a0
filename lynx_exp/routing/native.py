"""The primitives of `lanes` and `remap` as compiled loops, for CPUs where numba is installed (`pip install
lynx_exp[cpu]`).

A step of a small model on a CPU takes milliseconds and a torch operation microseconds, so a policy of fifty torch
operations in every layer would cost more than it saves. The loops here replace most of them, with the same results; the
torch versions beside their callers remain the definition, and run everywhere else.

T token rows, E experts, K top-k, G lanes, X sets, C how many are asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

try:
    from numba import njit
except ImportError:
    AVAILABLE = False

    def njit(**_options: Any) -> Any:  # type: ignore[no-redef]
        return lambda function: function
else:
    AVAILABLE = True

_FIXED_POINT = 2.0**32


def arrays(step: Any) -> tuple[Any, Any]:
    """(live, lane) of a StepContext as numpy arrays, made once a forward pass."""
    if "arrays" not in step.shared:
        step.shared["arrays"] = step.live.numpy(), step.lane.numpy()
    return step.shared["arrays"]


def usable(*tensors: Tensor) -> bool:
    """Whether the loops may run on these: numba is here, and so are the tensors, in types that numpy knows."""
    return AVAILABLE and all(t.device.type == "cpu" and t.dtype != torch.bfloat16 for t in tensors)


@njit(cache=True)
def lane_sum(values_TE, live_T, lane_T, num_lanes):  # type: ignore[no-untyped-def]
    """`[G, E]` float64."""
    total_GE = np.zeros((num_lanes, values_TE.shape[1]), np.int64)
    for t in range(values_TE.shape[0]):
        if live_T[t]:
            for e in range(values_TE.shape[1]):
                total_GE[lane_T[t], e] += np.int64(np.rint(np.float64(values_TE[t, e]) * _FIXED_POINT))
    return total_GE / _FIXED_POINT


@njit(cache=True)
def lane_votes(experts_TK, voting_T, live_T, lane_T, num_lanes, num_experts):  # type: ignore[no-untyped-def]
    """`[G, E]` int64."""
    votes_GE = np.zeros((num_lanes, num_experts), np.int64)
    for t in range(experts_TK.shape[0]):
        if live_T[t] and voting_T[t]:
            for k in range(experts_TK.shape[1]):
                votes_GE[lane_T[t], experts_TK[t, k]] += 1
    return votes_GE


@njit(cache=True)
def best_mask(first_XE, second_XE, count):  # type: ignore[no-untyped-def]
    """`[X, E]` bool: the best `count` by the first key, ties by the second, then by lower index."""
    rows, size = first_XE.shape
    mask_XE = np.zeros((rows, size), np.bool_)
    for x in range(rows):
        for _ in range(count):
            best = -1
            for e in range(size):
                if mask_XE[x, e]:
                    continue
                tied = best >= 0 and first_XE[x, e] == first_XE[x, best]
                if best < 0 or first_XE[x, e] > first_XE[x, best] or (tied and second_XE[x, e] > second_XE[x, best]):
                    best = e
            mask_XE[x, best] = True
    return mask_XE


@njit(cache=True)
def most_voted(scores_TE, experts_TK, live_T, lane_T, num_lanes, count):  # type: ignore[no-untyped-def]
    """`[G, E]` bool: each lane's `count` experts with most votes, ties by summed score, then by lower index."""
    num_experts = scores_TE.shape[1]
    votes_GE = lane_votes(experts_TK, live_T, live_T, lane_T, num_lanes, num_experts)
    return best_mask(votes_GE, lane_sum(scores_TE, live_T, lane_T, num_lanes), count)


@njit(cache=True)
def lane_rows(live_T, lane_T, num_lanes, least):  # type: ignore[no-untyped-def]
    """(live rows in lanes with at least `least` of them `[T]` bool, whether there are any)."""
    size_G = np.zeros(num_lanes, np.int64)
    for t in range(len(live_T)):
        size_G[lane_T[t]] += live_T[t]
    acts_T = np.empty(len(live_T), np.bool_)
    somewhere = False
    for t in range(len(live_T)):
        acts_T[t] = live_T[t] and size_G[lane_T[t]] >= least
        somewhere = somewhere or acts_T[t]
    return acts_T, somewhere


@njit(cache=True)
def lynx_votes(logits_TE, live_T, lane_T, size_G, alpha, beta, top_k):  # type: ignore[no-untyped-def]
    """`[G, E]` int64: AffinityBinning's votes, as `lynx_exp.routing.policies.lynx` has them in torch."""
    rows, size = logits_TE.shape
    bin_TE = np.empty((rows, size), np.float64)
    affinity_TE = np.empty((rows, size), np.float64)
    for t in range(rows):
        if live_T[t]:
            highest = logits_TE[t].max()
            for e in range(size):
                gap = np.float32(alpha) * (logits_TE[t, e] - highest)
                bin_TE[t, e] = max(np.float64(np.ceil(gap)), -np.float64(beta))
                affinity_TE[t, e] = np.float64(size_G[lane_T[t]]) ** bin_TE[t, e]
    column_GE = lane_sum(affinity_TE, live_T, lane_T, len(size_G))
    votes_GE = np.zeros((len(size_G), size), np.int64)
    z_E = np.empty(size, np.float64)
    taken_E = np.empty(size, np.bool_)
    for t in range(rows):
        if not live_T[t]:
            continue
        g = lane_T[t]
        for e in range(size):
            z_E[e] = bin_TE[t, e] + (column_GE[g, e] - affinity_TE[t, e]) / size_G[g]
        taken_E[:] = False
        for _ in range(top_k):
            best = -1
            for e in range(size):
                if taken_E[e]:
                    continue
                tied = best >= 0 and z_E[e] == z_E[best]
                if best < 0 or z_E[e] > z_E[best] or (tied and logits_TE[t, e] > logits_TE[t, best]):
                    best = e
            taken_E[best] = True
            votes_GE[g, best] += 1
    return votes_GE


@njit(cache=True)
def restrict(logits_TE, scores_TE, experts_TK, weights_TK, sets_XE, set_T, changes_T, renormalize):  # type: ignore[no-untyped-def]
    """(experts `[T, K]` int64, weights `[T, K]` of the scores' type)."""
    rows, top_k = experts_TK.shape
    new_experts_TK, new_weights_TK = experts_TK.copy(), weights_TK.copy()
    taken_E = np.empty(logits_TE.shape[1], np.bool_)
    for t in range(rows):
        if not changes_T[t]:
            continue
        allowed_E = sets_XE[set_T[t]]
        inside = True
        for k in range(top_k):
            inside = inside and allowed_E[experts_TK[t, k]]
        if inside:
            continue
        taken_E[:] = False
        total, mass = np.float32(0.0), np.float32(0.0)
        for k in range(top_k):
            best = -1
            for e in range(logits_TE.shape[1]):
                if allowed_E[e] and not taken_E[e] and (best < 0 or logits_TE[t, e] > logits_TE[t, best]):
                    best = e
            taken_E[best] = True
            new_experts_TK[t, k] = best
            new_weights_TK[t, k] = scores_TE[t, best]
            total += scores_TE[t, best]
            mass += weights_TK[t, k]
        factor = (np.float32(1.0) if renormalize else mass) / max(total, np.float32(1.1754943508222875e-38))
        for k in range(top_k):
            new_weights_TK[t, k] *= factor
    return new_experts_TK, new_weights_TK
