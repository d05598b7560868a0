"""The primitives of `routing.ops` as compiled loops, for CPUs with numba (`pip install lynx_exp[cpu]`).

A decode step of a small model on a CPU takes milliseconds, and a torch operation microseconds. A policy of fifty torch
operations per layer would therefore cost more time than it saves. These loops replace most of the operations and give
the same results. The torch code in their callers defines the result, and runs wherever numba cannot.

T token rows, E experts, K top-k, W slots of a row after the policy (W >= K), G lanes, X sets of experts.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

F = TypeVar("F")

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lynx_exp.routing.types import StepContext

try:
    from numba import carray, types
    from numba import njit as njit
    from numba.extending import intrinsic
except ImportError:
    AVAILABLE = False

    def njit(**_options: object) -> Callable[[F], F]:  # type: ignore[no-redef]  # in place of numba's
        return lambda function: function
else:
    AVAILABLE = True

    @intrinsic
    def _pointer(_context, address, like):  # type: ignore[no-untyped-def]
        """`address` as a pointer to numbers of the type of `like`."""

        def generate(_context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.inttoptr(arguments[0], _context.get_value_type(signature.return_type))

        return types.CPointer(like)(address, like), generate


FIXED_POINT = 2.0**32
"""Sums are of integers in units of 1 / FIXED_POINT: the order of a lane's rows then cannot change the result."""
MOST_LOGIT = 1024.0
"""`lynx_exp.routing.ops.lanes.lane_logits`: of a token for an expert; less than its negative is a veto."""
_HALVES = (torch.bfloat16, torch.float16)


def arrays(step: StepContext) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """(live, lane) of a step as numpy arrays of shape `[T]`, cached for one forward pass."""
    if "arrays" not in step.shared:
        step.shared["arrays"] = step.live.numpy(), step.lane.numpy()
    live_T, lane_T = step.shared["arrays"]
    return live_T, lane_T


def stamp(*files: str) -> int:
    """A checksum of source files, by which a compiled function can tell that its callees have changed."""
    return zlib.crc32(b"".join(Path(file).read_bytes() for file in files))


def usable(*tensors: Tensor) -> bool:
    """Whether the loops can run: numba is installed, and the tensors are on the CPU in types that numpy has."""
    return AVAILABLE and all(t.device.type == "cpu" and t.dtype not in _HALVES for t in tensors)


@njit(cache=True)
def at(address, shape, like):  # type: ignore[no-untyped-def]
    """View the memory at `address` as a contiguous array of this shape, with elements of the type of `like`."""
    return carray(_pointer(address, like), shape)  # type: ignore[call-arg]


@njit(cache=True)
def lane_sum(values_TE, live_T, lane_T, num_lanes):  # type: ignore[no-untyped-def]
    """Sum over the live rows of each lane: `[G, E]` float64."""
    total_GE = np.zeros((num_lanes, values_TE.shape[1]), np.int64)
    for t in range(values_TE.shape[0]):
        if live_T[t]:
            for e in range(values_TE.shape[1]):
                total_GE[lane_T[t], e] += np.int64(np.rint(np.float64(values_TE[t, e]) * FIXED_POINT))
    return total_GE / FIXED_POINT


@njit(cache=True)
def lane_logits(logits_TE, live_T, lane_T, num_lanes):  # type: ignore[no-untyped-def]
    """`[G, E]` float64: -inf where a live row is below -MOST_LOGIT."""
    total_GE = np.zeros((num_lanes, logits_TE.shape[1]), np.int64)
    vetoed_GE = np.zeros((num_lanes, logits_TE.shape[1]), np.bool_)
    for t in range(logits_TE.shape[0]):
        if live_T[t]:
            for e in range(logits_TE.shape[1]):
                if logits_TE[t, e] < -MOST_LOGIT:
                    vetoed_GE[lane_T[t], e] = True
                else:
                    total_GE[lane_T[t], e] += np.int64(
                        np.rint(min(np.float64(logits_TE[t, e]), MOST_LOGIT) * FIXED_POINT)
                    )
    return np.where(vetoed_GE, -np.inf, total_GE / FIXED_POINT)


@njit(cache=True)
def lane_votes(experts_TK, choice_TE, voting_T, live_T, lane_T, num_lanes):  # type: ignore[no-untyped-def]
    """How often each expert is listed, and not shut out, by a live, voting row of the lane: `[G, E]` int64."""
    votes_GE = np.zeros((num_lanes, choice_TE.shape[1]), np.int64)
    for t in range(experts_TK.shape[0]):
        if live_T[t] and voting_T[t]:
            for k in range(experts_TK.shape[1]):
                votes_GE[lane_T[t], experts_TK[t, k]] += choice_TE[t, experts_TK[t, k]] != -np.inf
    return votes_GE


@njit(cache=True)
def best_mask(first_XE, second_XE, count):  # type: ignore[no-untyped-def]
    """Each set's `count` best experts by the first key; ties by the second, then the lower index: `[X, E]` bool."""
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
def most_voted(scores_TE, choice_TE, experts_TK, live_T, lane_T, num_lanes, count):  # type: ignore[no-untyped-def]
    """Each lane's `count` experts with the most votes; ties by summed score, then the lower index: `[G, E]` bool."""
    votes_GE = lane_votes(experts_TK, choice_TE, live_T, live_T, lane_T, num_lanes)
    return best_mask(votes_GE, lane_sum(scores_TE, live_T, lane_T, num_lanes), count)


@njit(cache=True)
def lane_size(live_T, lane_T, num_lanes):  # type: ignore[no-untyped-def]
    """Live rows of each lane: `[G]` int64."""
    size_G = np.zeros(num_lanes, np.int64)
    for t in range(len(live_T)):
        size_G[lane_T[t]] += live_T[t]
    return size_G


@njit(cache=True)
def lane_rows(live_T, lane_T, num_lanes, least):  # type: ignore[no-untyped-def]
    """(which rows are live and in a lane with at least `least` live rows, `[T]` bool; whether any is)."""
    size_G = lane_size(live_T, lane_T, num_lanes)
    acts_T = np.empty(len(live_T), np.bool_)
    somewhere = False
    for t in range(len(live_T)):
        acts_T[t] = live_T[t] and size_G[lane_T[t]] >= least
        somewhere = somewhere or acts_T[t]
    return acts_T, somewhere


@njit(cache=True)
def lynx_votes(affinity_TE, live_T, lane_T, size_G, alpha, lowest, whole_bins, top_k):  # type: ignore[no-untyped-def]
    """AffinityBinning's votes, `[G, E]` int64; `lynx_exp.routing.policies.lynx` has the torch code and the source.

    A row's pull on an expert is (rows of the lane) ** bin, with bin <= 0. The row then votes for the `top_k` experts
    with the largest sum of its own bin and the pull of the other rows, over the lane's number of rows.
    """
    rows, size = affinity_TE.shape
    bin_TE = np.empty((rows, size), np.float64)
    pull_TE = np.empty((rows, size), np.float64)
    # with fewer bins than experts, each power is computed once per lane instead of once per row and expert
    few = whole_bins and lowest > -size
    pull_GB = np.empty((len(size_G), int(-lowest) + 1 if few else 0), np.float64)
    for g in range(len(size_G)):
        for b in range(pull_GB.shape[1]):
            pull_GB[g, b] = np.float64(max(size_G[g], 1)) ** np.float64(-b)
    for t in range(rows):
        if live_T[t]:
            highest = affinity_TE[t].max()
            for e in range(size):
                gap = np.float64(np.float32(alpha) * (affinity_TE[t, e] - highest))
                bin_TE[t, e] = max(np.ceil(gap) if whole_bins else gap, lowest)
                if affinity_TE[t, e] == -np.inf:
                    pull_TE[t, e] = 0.0
                elif few and bin_TE[t, e] >= lowest:  # false for NaN
                    pull_TE[t, e] = pull_GB[lane_T[t], int(-bin_TE[t, e])]
                else:
                    pull_TE[t, e] = np.float64(size_G[lane_T[t]]) ** bin_TE[t, e]
    column_GE = lane_sum(pull_TE, live_T, lane_T, len(size_G))
    votes_GE = np.zeros((len(size_G), size), np.int64)
    z_E = np.empty(size, np.float64)
    taken_E = np.empty(size, np.bool_)
    for t in range(rows):
        if not live_T[t]:
            continue
        g = lane_T[t]
        for e in range(size):
            z_E[e] = bin_TE[t, e] + (column_GE[g, e] - pull_TE[t, e]) / size_G[g]
            taken_E[e] = affinity_TE[t, e] == -np.inf
        for _ in range(top_k):
            best = -1
            for e in range(size):
                if taken_E[e]:
                    continue
                tied = best >= 0 and z_E[e] == z_E[best]
                if best < 0 or z_E[e] > z_E[best] or (tied and affinity_TE[t, e] > affinity_TE[t, best]):
                    best = e
            if best >= 0:
                taken_E[best] = True
                votes_GE[g, best] += 1
    return votes_GE


@njit(cache=True)
def factor_of(mass, total):  # type: ignore[no-untyped-def]
    """`lynx_exp.routing.ops.remap.factor_of`, of float32."""
    return min(mass / max(total, np.float32(1.1754943508222875e-38)), np.float32(3.4028234663852886e38))


@njit(cache=True)
def restrict(choice_TE, scores_TE, experts_TK, weights_TK, sets_XE, set_T, changes_T, renormalize, slots):  # type: ignore[no-untyped-def]
    """`lynx_exp.routing.ops.remap.restrict`: (experts int64, weights), both `[T, W]` with W = max(K, slots)."""
    rows, width = len(experts_TK), max(experts_TK.shape[1], slots)
    new_TW = np.empty((rows, width), np.int64), np.empty((rows, width), weights_TK.dtype)
    restrict_into(
        new_TW[0],
        new_TW[1],
        choice_TE,
        scores_TE,
        experts_TK,
        weights_TK,
        sets_XE,
        set_T,
        changes_T,
        renormalize,
        slots,
    )
    return new_TW


@njit(cache=True)
def restrict_into(
    new_experts_TW,  # type: ignore[no-untyped-def]
    new_weights_TW,
    choice_TE,
    scores_TE,
    experts_TK,
    weights_TK,
    sets_XE,
    set_T,
    changes_T,
    renormalize,
    slots,
):
    """`restrict`, with its results written to the first two arguments."""
    rows, top_k = experts_TK.shape
    width = new_experts_TW.shape[1]
    taken_E = np.empty(choice_TE.shape[1], np.bool_)
    for t in range(rows):
        for w in range(width):
            new_experts_TW[t, w] = experts_TK[t, w] if w < top_k else experts_TK[t, 0]
            new_weights_TW[t, w] = weights_TK[t, w] if w < top_k else 0.0
        if not changes_T[t]:
            continue
        # a row whose own choice is allowed keeps its weights to the last bit, which recomputing them would not give
        allowed_E = sets_XE[set_T[t]]
        inside = slots == top_k
        for k in range(top_k):
            inside = inside and allowed_E[experts_TK[t, k]]
        if inside:
            continue
        taken_E[:] = False
        total, mass = np.float32(0.0), np.float32(0.0)
        for k in range(top_k):
            mass += weights_TK[t, k]
        filled = 0
        for w in range(slots):
            best = -1
            for e in range(choice_TE.shape[1]):
                free = allowed_E[e] and not taken_E[e] and choice_TE[t, e] > -np.inf
                if free and (best < 0 or choice_TE[t, e] > choice_TE[t, best]):
                    best = e
            if best < 0:
                break
            taken_E[best] = True
            new_experts_TW[t, w] = best
            new_weights_TW[t, w] = scores_TE[t, best]
            total += scores_TE[t, best]
            filled += 1
        if filled == 0:
            continue
        factor = factor_of(np.float32(1.0) if renormalize else mass, total)
        for w in range(width):
            if w < filled:
                new_weights_TW[t, w] *= factor
            else:  # an empty slot repeats the first expert, so that no further expert becomes active
                new_experts_TW[t, w] = new_experts_TW[t, 0]
                new_weights_TW[t, w] = 0.0


@njit(cache=True)
def drop_slots(experts_TK, weights_TK, dropped_TK, keep_mass):  # type: ignore[no-untyped-def]
    """(experts, weights), both `[T, K]`: the remaining slots move to the front, and the others are emptied."""
    new_experts_TK, new_weights_TK = experts_TK.copy(), weights_TK.copy()
    drop_slots_of(new_experts_TK, new_weights_TK, experts_TK, weights_TK, dropped_TK, keep_mass)
    return new_experts_TK, new_weights_TK


@njit(cache=True)
def drop_slots_of(new_experts_TK, new_weights_TK, experts_TK, weights_TK, dropped_TK, keep_mass):  # type: ignore[no-untyped-def]
    """`drop_slots`, in place: the first two arguments are copies of the next two, and receive the results."""
    rows, top_k = experts_TK.shape
    for t in range(rows):
        left = 0
        mass, total = np.float32(0.0), np.float32(0.0)
        for k in range(top_k):
            mass += weights_TK[t, k]
            if not dropped_TK[t, k]:
                new_experts_TK[t, left] = experts_TK[t, k]
                new_weights_TK[t, left] = weights_TK[t, k]
                total += weights_TK[t, k]
                left += 1
        if left == top_k:
            continue
        factor = factor_of(mass, total) if keep_mass else np.float32(1.0)
        for k in range(top_k):
            if k < left:
                new_weights_TK[t, k] *= factor
            else:
                new_experts_TK[t, k] = new_experts_TK[t, 0]
                new_weights_TK[t, k] = 0.0


@njit(cache=True)
def substitute(experts_TK, primary_GE, alike_EE, live_T, lane_T, first, threshold):  # type: ignore[no-untyped-def]
    """SERE's experts, `[T, K]` int64: each expert gives way to the most similar primary one of its lane.

    Slots before `first` stay, and so do experts whose similarity to every primary one is below `threshold`.
    """
    lanes, size = primary_GE.shape
    instead_GE = np.empty((lanes, size), np.int64)
    for g in range(lanes):
        for e in range(size):
            best = -1
            for v in range(size):
                if primary_GE[g, v] and (best < 0 or alike_EE[e, v] > alike_EE[e, best]):
                    best = v
            stays = primary_GE[g, e] or best < 0 or alike_EE[e, best] < np.float32(threshold)
            instead_GE[g, e] = e if stays else best
    new_TK = experts_TK.copy()
    for t in range(len(new_TK)):
        if live_T[t]:
            for k in range(first, new_TK.shape[1]):
                new_TK[t, k] = instead_GE[lane_T[t], experts_TK[t, k]]
    return new_TK


@njit(cache=True)
def weigh(choice_TE, scores_TE, own_TK, experts_TW, weights_TW, scale_E, count, renormalize, scaling):  # type: ignore[no-untyped-def]
    """`lynx_exp.routing.ops.weigh.weigh`: the combine weights, `[T, W]`.

    `count` is what `denominator_of` returns. `scale_E` is empty for a router without a scale per expert.
    """
    rows, top_k = own_TK.shape
    width = experts_TW.shape[1]
    new_TW = weights_TW.copy()
    runs_W = np.empty(width, np.bool_)
    for t in range(rows):
        # a slot that repeats an earlier expert is empty; a row with the router's own experts keeps its weights
        changed = False
        for w in range(width):
            runs_W[w] = True
            for earlier in range(w):
                runs_W[w] = runs_W[w] and experts_TW[t, earlier] != experts_TW[t, w]
            changed = changed or (experts_TW[t, w] != own_TK[t, w] if w < top_k else runs_W[w])
        if not changed:
            continue
        own, total = np.float32(0.0), np.float32(0.0)
        for k in range(top_k):
            own += scores_TE[t, own_TK[t, k]]
        if count < 0:
            for w in range(width):
                total += scores_TE[t, experts_TW[t, w]] if runs_W[w] else np.float32(0.0)
        elif count == 0:
            total = own
        else:
            for e in np.argsort(-choice_TE[t], kind="mergesort")[:count]:
                total += scores_TE[t, e] if choice_TE[t, e] > -np.inf else np.float32(0.0)
        mass = np.float32(scaling) if renormalize else np.float32(scaling) * own
        factor = factor_of(mass, total)
        for w in range(width):
            weight = scores_TE[t, experts_TW[t, w]] * factor if runs_W[w] else np.float32(0.0)
            new_TW[t, w] = weight * scale_E[experts_TW[t, w]] if len(scale_E) else weight
    return new_TW
