"""The four launches of `few_rows`: list each expert's slots, up product and activation, down product, sum over K.

Every expert has programs of its own, which read how many slots it has and return at once where there are none: one CUDA
graph serves any routing, and only the weights of experts that some row uses are read. A row's sums run over the same
tiles in the same order whoever shares its tile, so its bits do not depend on the other rows.

T token rows, K slots a row, S = T * K, E experts, D hidden size, I inner size; BM rows, BN columns, BK inner positions
of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.models.expert_kernels.activations import activate

GATED_NOT, CONCATENATED, INTERLEAVED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
CLAMP_NOT, CLAMP_BEFORE, CLAMP_AFTER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _alive(experts_ptr, weights_ptr, s, within, E: tl.constexpr):
    """(expert int32, whether the slot runs): not with weight 0, nor with an expert of another rank."""
    expert = tl.load(experts_ptr + s, mask=within, other=-1).to(tl.int32)
    weight = tl.load(weights_ptr + s, mask=within, other=0.0)
    return expert, within & (weight != 0) & (expert >= 0) & (expert < E)


@triton.jit(do_not_specialize=["num_slots"])
def list_kernel(experts_ptr, weights_ptr, lists_ptr, num_slots, E: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (E). `lists_ptr` int32: where each expert's slots begin `[E]`, how many it has `[E]`, the slots `[S]`."""
    e = tl.program_id(0)
    start = tl.zeros([], tl.int32)
    for s0 in range(0, num_slots, BLOCK):
        s = s0 + tl.arange(0, BLOCK)
        expert, runs = _alive(experts_ptr, weights_ptr, s, s < num_slots, E)
        start += tl.sum((runs & (expert < e)).to(tl.int32), 0)
    count = tl.zeros([], tl.int32)
    for s0 in range(0, num_slots, BLOCK):
        s = s0 + tl.arange(0, BLOCK)
        expert, runs = _alive(experts_ptr, weights_ptr, s, s < num_slots, E)
        mine = (runs & (expert == e)).to(tl.int32)
        place = start + count + tl.cumsum(mine, 0) - 1
        tl.store(lists_ptr + 2 * E + place, s, mask=mine > 0)
        count += tl.sum(mine, 0)
    tl.store(lists_ptr + e, start)
    tl.store(lists_ptr + E + e, count)


@triton.jit
def _weights(
    w_ptr, n, k, w_n, w_k, N: tl.constexpr, DEPTH: tl.constexpr, TRANSPOSED: tl.constexpr, WHOLE: tl.constexpr
):
    """`[BK, n]`. WHOLE: no tile reaches over an edge. Read along the side that lies together in memory."""
    if TRANSPOSED:
        at = w_ptr + k[:, None] * w_k + n[None, :] * w_n
        if WHOLE:  # noqa: SIM108
            tile = tl.load(at)
        else:
            tile = tl.load(at, mask=(k < DEPTH)[:, None] & (n < N)[None, :], other=0.0)
    else:
        at = w_ptr + n[:, None] * w_n + k[None, :] * w_k
        if WHOLE:
            tile = tl.trans(tl.load(at))
        else:
            tile = tl.trans(tl.load(at, mask=(n < N)[:, None] & (k < DEPTH)[None, :], other=0.0))
    return tile


@triton.jit
def _rows(ptr, rows, mine, k, DEPTH: tl.constexpr, WHOLE: tl.constexpr):
    """`[BM, BK]` of a contiguous matrix with DEPTH columns."""
    at = ptr + rows[:, None] * DEPTH + k[None, :]
    if WHOLE:
        tile = tl.load(at, mask=mine[:, None], other=0.0)
    else:
        tile = tl.load(at, mask=mine[:, None] & (k < DEPTH)[None, :], other=0.0)
    return tile


@triton.jit
def _dot(a, b, total, WIDE: tl.constexpr):
    """WIDE: factors in float32, which holds their products exactly, as matrix units do; the interpreter has no product
    of bfloat16."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _bias(ptr, n, N: tl.constexpr):
    return tl.load(ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _gated(
    gate,
    up,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    CLAMP: tl.constexpr,
    LIMIT: tl.constexpr,
    SHIFT: tl.constexpr,
):
    if CLAMP == CLAMP_BEFORE:
        gate = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    gate = activate(gate, ACT, ALPHA)
    if CLAMP == CLAMP_AFTER:
        gate = tl.minimum(gate, LIMIT, propagate_nan=tl.PropagateNan.ALL)
    if CLAMP != CLAMP_NOT:
        up = tl.minimum(up, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        up = tl.maximum(up, -LIMIT, propagate_nan=tl.PropagateNan.ALL)
    return gate * (up + SHIFT)


@triton.jit
def up_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    out_ptr,
    lists_ptr,
    w_e,
    w_n,
    w_k,
    E: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    TRANSPOSED: tl.constexpr,
    BIASED: tl.constexpr,
    GATED: tl.constexpr,
    ACT: tl.constexpr,
    ALPHA: tl.constexpr,
    CLAMP: tl.constexpr,
    LIMIT: tl.constexpr,
    SHIFT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Grid (I / BN, E). Rows of x `[T, D]` times the expert's weights, activated, to `out_ptr` `[S, I]`.

    GATED: CONCATENATED reads two tiles of BN columns, I apart; INTERLEAVED one of 2 * BN, taken apart afterwards."""
    e = tl.program_id(1)
    count = tl.load(lists_ptr + E + e)
    if count == 0:
        return
    slots_ptr = lists_ptr + 2 * E + tl.load(lists_ptr + e)
    WHOLE: tl.constexpr = (D % BK == 0) and (I % BN == 0)
    WHOLE_K: tl.constexpr = D % BK == 0
    WIDTH: tl.constexpr = 2 * I if GATED == INTERLEAVED else I
    COLUMNS: tl.constexpr = 2 * BN if GATED == INTERLEAVED else BN
    w_ptr += e.to(tl.int64) * w_e
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    for m0 in range(0, count, BM):
        m = m0 + tl.arange(0, BM)
        mine = m < count
        s = tl.load(slots_ptr + m, mask=mine, other=0)
        first = tl.zeros([BM, COLUMNS], tl.float32)
        second = tl.zeros([BM, COLUMNS], tl.float32)
        for k0 in range(0, D, BK):
            k = k0 + tl.arange(0, BK)
            a = _rows(x_ptr, s // K, mine, k, D, WHOLE_K)
            w = _weights(w_ptr, n, k, w_n, w_k, WIDTH, D, TRANSPOSED, WHOLE)
            first = _dot(a, w, first, WIDE)
            if GATED == CONCATENATED:
                w = _weights(w_ptr + w_n * I, n, k, w_n, w_k, WIDTH, D, TRANSPOSED, WHOLE)
                second = _dot(a, w, second, WIDE)
        if BIASED:
            own_ptr = bias_ptr + e * (I if GATED == GATED_NOT else 2 * I)
            first += _bias(own_ptr, n, WIDTH)
            if GATED == CONCATENATED:
                second += _bias(own_ptr + I, n, WIDTH)
        if GATED == GATED_NOT:
            made = activate(first, ACT, ALPHA)
        elif GATED == CONCATENATED:
            made = _gated(first, second, ACT, ALPHA, CLAMP, LIMIT, SHIFT)
        else:
            gate, up = tl.split(tl.reshape(first, (BM, BN, 2)))
            made = _gated(gate, up, ACT, ALPHA, CLAMP, LIMIT, SHIFT)
        to = out_ptr + s[:, None] * I + column[None, :]
        tl.store(to, made.to(out_ptr.dtype.element_ty), mask=mine[:, None] & (column < I)[None, :])


@triton.jit
def down_kernel(
    h_ptr,
    w_ptr,
    bias_ptr,
    weights_ptr,
    out_ptr,
    lists_ptr,
    w_e,
    w_n,
    w_k,
    E: tl.constexpr,
    D: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    TRANSPOSED: tl.constexpr,
    BIASED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Grid (D / BN, E). What `up_kernel` made `[S, I]` times the expert's weights and the slot's own, to `[S, D]`."""
    e = tl.program_id(1)
    count = tl.load(lists_ptr + E + e)
    if count == 0:
        return
    slots_ptr = lists_ptr + 2 * E + tl.load(lists_ptr + e)
    WHOLE: tl.constexpr = (I % BK == 0) and (D % BN == 0)
    WHOLE_K: tl.constexpr = I % BK == 0
    w_ptr += e.to(tl.int64) * w_e
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    for m0 in range(0, count, BM):
        m = m0 + tl.arange(0, BM)
        mine = m < count
        s = tl.load(slots_ptr + m, mask=mine, other=0)
        made = tl.zeros([BM, BN], tl.float32)
        for k0 in range(0, I, BK):
            k = k0 + tl.arange(0, BK)
            a = _rows(h_ptr, s, mine, k, I, WHOLE_K)
            w = _weights(w_ptr, n, k, w_n, w_k, D, I, TRANSPOSED, WHOLE)
            made = _dot(a, w, made, WIDE)
        if BIASED:
            made += _bias(bias_ptr + e * D, n, D)
        made *= tl.load(weights_ptr + s, mask=mine, other=0.0).to(tl.float32)[:, None]
        to = out_ptr + s[:, None] * D + n[None, :]
        tl.store(to, made.to(out_ptr.dtype.element_ty), mask=mine[:, None] & (n < D)[None, :])


@triton.jit
def sum_kernel(
    y_ptr,
    experts_ptr,
    weights_ptr,
    out_ptr,
    E: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    BN: tl.constexpr,
):
    """Grid (T, D / BN). The sum of a row's slots that ran: the others of y `[S, D]` were never written."""
    t = tl.program_id(0)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros([BN], tl.float32)
    for k in tl.static_range(K):
        s = t * K + k
        _expert, runs = _alive(experts_ptr, weights_ptr, s + tl.zeros([BN], tl.int32), n < D, E)
        total += tl.load(y_ptr + s * D + n, mask=runs, other=0.0).to(tl.float32)
    tl.store(out_ptr + t * D + n, total.to(out_ptr.dtype.element_ty), mask=n < D)
