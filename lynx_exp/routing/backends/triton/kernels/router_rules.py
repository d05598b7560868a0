"""A router's rule after its matrix: scores, top-K and weights of a row in one program, with no neighbour to wait for.

The definition is `RouterRule.route`. Groups are made as wide as a power of 2: column c of a row stands for expert
c // BS * S + c % BS, S being the size of a group, so that the order of experts stays.

T token rows, E experts, K top-k, H groups of S experts, BH/BS/BK their sizes as powers of 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lynx_exp.routing.backends.triton.kernels.hashes import LOW_32
from lynx_exp.routing.backends.triton.kernels.tiles import LOWEST_INT64, SMALLEST, ranked

SOFTMAX, SIGMOID, SQRT_SOFTPLUS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NONE, SCORES, LOGITS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""What a bias is added to."""
LOG2_E, LN2_HIGH, LN2_LOW = tl.constexpr(1.4426950408889634), tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)
"""The high part of ln 2 has so few bits that its product with a whole number below 256 is exact (Cody, Waite
1980)."""
LINEAR = tl.constexpr(20.0)
"""Above it torch's softplus is the identity."""


@triton.jit
def exponential(value):
    """exp in float32, within some units in the last place: `tl.exp` rounds value * log2(e), and loses bits as that
    grows."""
    real = value == value
    near = tl.where(real, tl.minimum(tl.maximum(value, -104.0), 89.0), 0.0)
    whole = tl.maximum(tl.floor(near * LOG2_E + 0.5), -127.0)
    rest = (near - whole * LN2_HIGH) - whole * LN2_LOW
    power = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)  # 2^whole: 0 at -127, inf at 128
    return tl.where(real, tl.exp2(rest * LOG2_E) * power, value)


@triton.jit
def _root_of_softplus(value):
    """In float64: log(1 + u) for small u, corrected for what 1 + u loses (Kahan)."""
    wide = tl.minimum(value, LINEAR).to(tl.float64)
    small = tl.exp(wide)
    more = 1.0 + small
    lost = more - 1.0
    log = tl.where(lost == 0.0, small, tl.log(more) * (small / tl.where(lost == 0.0, 1.0, lost)))
    found = tl.where(value > LINEAR, value, tl.sqrt(log).to(tl.float32))
    found = tl.where(value > LINEAR, tl.sqrt_rn(tl.maximum(value, 0.0)), found)
    return tl.where(value == value, found, value)


@triton.jit
def _allowed(value, real, TOP_GROUPS: tl.constexpr, TOP2: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BS):
    """`[BH * BS]` bool: the columns of the row's best groups, by the best of their values or the sum of two."""
    h = tl.arange(0, BH)
    given = tl.reshape(tl.where(real, value, float("-inf")), [BH, BS])
    odd = tl.max((given != given).to(tl.int32), 1) > 0
    best = tl.max(given, 1)
    if TOP2:
        at_best = given == best[:, None]
        below = tl.max(tl.where(at_best, float("-inf"), given), 1)
        best = best + tl.where(tl.sum(at_best.to(tl.int32), 1) > 1, best, below)
    left = tl.where(h < H, ranked(tl.where(odd, float("nan"), best), h, BH), LOWEST_INT64)
    taken = h < 0
    for _ in range(TOP_GROUPS):
        first = left == tl.max(left, 0)
        taken = taken | first
        left = tl.where(first, LOWEST_INT64, left)
    return tl.reshape(tl.broadcast_to(taken[:, None], [BH, BS]), [BH * BS])


@triton.jit
def route_kernel(
    logits_ptr,
    bias_ptr,
    scale_ptr,
    scores_ptr,
    choice_ptr,
    experts_ptr,
    weights_ptr,
    scaling,
    SCORE: tl.constexpr,
    BIAS: tl.constexpr,
    H: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    TOP2: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    CHOOSES: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    BH: tl.constexpr,
    BS: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (T,). CHOOSES: whether what the choice goes by is wanted, too; else it is the logits as they came."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BH * BS)
    expert = column // BS * S + column % BS
    real = (column // BS < H) & (column % BS < S)
    at = row * (H * S) + expert
    logit = tl.load(logits_ptr + at, mask=real, other=float("-inf")).to(tl.float32)
    if SCORE == SOFTMAX:
        above = tl.where(real, exponential(logit - tl.max(logit, 0)), 0.0)
        score = tl.div_rn(above, tl.zeros_like(above) + tl.sum(above, 0))
    elif SCORE == SIGMOID:
        score = tl.div_rn(tl.full([BH * BS], 1.0, tl.float32), 1.0 + exponential(-logit))
    else:
        score = _root_of_softplus(logit)
    choice = logit
    if BIAS != NONE:
        bias = tl.load(bias_ptr + expert, mask=real, other=0.0).to(tl.float32)
        choice = (score if BIAS == SCORES else logit) + bias
    if TOP_GROUPS < H:
        allowed = _allowed(score if BIAS == NONE else choice, real, TOP_GROUPS, TOP2, H, BH, BS)
        choice = tl.where(allowed, choice, float("-inf"))
    tl.store(scores_ptr + at, score, mask=real)
    if CHOOSES:
        tl.store(choice_ptr + at, choice, mask=real)

    k = tl.arange(0, BK)
    experts = tl.zeros([BK], tl.int64)
    raw = tl.zeros([BK], tl.float32)
    left = tl.where(real, ranked(choice, column, BH * BS), LOWEST_INT64)
    for slot in range(K):
        best = BH * BS - 1 - (tl.max(left, 0) & LOW_32).to(tl.int32)
        here = column == best
        left = tl.where(here, LOWEST_INT64, left)
        experts = tl.where(k == slot, best // BS * S + best % BS, experts)
        raw = tl.where(k == slot, tl.sum(tl.where(here, score, 0.0), 0), raw)
    weights = raw
    if RENORMALIZE:
        total = tl.sum(raw, 0)
        weights = tl.div_rn(raw, tl.zeros_like(raw) + tl.where(total < SMALLEST, SMALLEST, total))
    weights = weights * scaling
    if SCALED:
        weights = weights * tl.load(scale_ptr + experts, mask=k < K, other=0.0).to(tl.float32)
    tl.store(experts_ptr + row * K + k, experts, mask=k < K)
    tl.store(weights_ptr + row * K + k, weights.to(weights_ptr.dtype.element_ty), mask=k < K)
