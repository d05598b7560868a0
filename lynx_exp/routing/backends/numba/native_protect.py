"""`lynx_exp.routing.ops.protect.keep_protected`, compiled: see `native`.

T token rows, E experts, K top-k, W slots afterwards.
"""

from __future__ import annotations

import numpy as np

from lynx_exp.routing.backends.numba.native import njit, weigh


@njit(cache=True)
def _best(choice_E, left_E):  # type: ignore[no-untyped-def]
    """The best of `left_E`, the lowest of several; -1 if there is none."""
    best = -1
    for e in range(len(choice_E)):
        if left_E[e] and (best < 0 or choice_E[e] > choice_E[best]):
            best = e
    return best


@njit(cache=True)
def _fill(experts_W, choice_E, running_E, needed_E):  # type: ignore[no-untyped-def]
    """Write a row's experts: those that are needed, then the best that run, in the order of the choice."""
    runs_E = needed_E.copy()
    left_E = running_E & ~needed_E
    for _ in range(len(experts_W) - needed_E.sum()):
        best = _best(choice_E, left_E)
        if best < 0:
            break
        left_E[best], runs_E[best] = False, True
    for w in range(len(experts_W)):
        best = _best(choice_E, runs_E)
        experts_W[w] = experts_W[0] if best < 0 else best
        if best >= 0:
            runs_E[best] = False


@njit(cache=True)
def keep_protected(  # type: ignore[no-untyped-def]
    choice_TE,
    scores_TE,
    own_TK,
    own_weights_TK,
    experts_TW,
    weights_TW,
    protected_E,
    scale_E,
    renormalize,
    scaling,
):
    """(experts, weights), both `[T, W]`; `scale_E` empty for a router without a scale."""
    (rows, width), top_k = experts_TW.shape, own_TK.shape[1]
    made_TW, base_TW = experts_TW.copy(), weights_TW.copy()
    lost_T = np.zeros(rows, np.bool_)
    running_E = np.empty(len(protected_E), np.bool_)
    needed_E = np.empty(len(protected_E), np.bool_)
    for t in range(rows):
        running_E[:] = False
        needed_E[:] = False
        for w in range(width):
            running_E[experts_TW[t, w]] = True
        for k in range(top_k):
            e = own_TK[t, k]
            needed_E[e] = protected_E[e] and choice_TE[t, e] > -np.inf
            lost_T[t] |= needed_E[e] and not running_E[e]
        if lost_T[t]:
            _fill(made_TW[t], choice_TE[t], running_E, needed_E)
            for w in range(width):  # a row that has its own top-K again has its own weights again
                base_TW[t, w] = own_weights_TK[t, w] if w < top_k else np.float32(0.0)
    if not lost_T.any():
        return made_TW, base_TW
    fresh_TW = weigh(choice_TE, scores_TE, own_TK, made_TW, base_TW, scale_E, -1, renormalize, scaling)
    for t in range(rows):
        if lost_T[t]:
            base_TW[t] = fresh_TW[t]
    return made_TW, base_TW
