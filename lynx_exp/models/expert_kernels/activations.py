"""The elementwise activations of `few_rows` inside a kernel; `gates.ACTIVATIONS` has the same list in torch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def _erf_gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _above(x, low):
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _below(x, high):
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), without loss where exp(x) is small beside 1."""
    small = tl.exp(-tl.abs(x))
    one = 1.0 + small
    tail = tl.where(one == 1.0, small, tl.log(one) * (small / tl.where(one == 1.0, 1.0, one - 1.0)))
    return _above(x, 0.0) + tail


@triton.jit
def activate(x, ACT: tl.constexpr, ALPHA: tl.constexpr):
    """ACT: the place in `gates.ACTIVATIONS`. x float32."""
    if ACT == 0:
        y = x * tl.sigmoid(ALPHA * x)
    elif ACT == 1:
        y = _erf_gelu(x)
    elif ACT == 2:
        y = 0.5 * x * (1.0 + _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACT == 3:
        y = _below(_above(_erf_gelu(x), -10.0), 10.0)
    elif ACT == 4:
        y = _above(x, 0.0)
    elif ACT == 5:
        positive = _above(x, 0.0)
        y = positive * positive
    elif ACT == 6:
        y = _below(_above(x, 0.0), 6.0)
    elif ACT == 7:
        y = tl.where(x > 0.0, x, 0.01 * x)
    elif ACT == 8:
        y = tl.sigmoid(x)
    elif ACT == 9:
        y = _tanh(x)
    elif ACT == 10:
        y = x
    elif ACT == 11:
        y = x * _tanh(_softplus(x))
    elif ACT == 12:
        y = x * _below(_above(x + 3.0, 0.0), 6.0) * (1.0 / 6.0)
    elif ACT == 13:
        y = 0.5 * (1.0 + tl.erf((x - 0.707107) * 2.5066268665))
    else:
        tl.static_assert(ACT == 14)
        y = tl.sqrt(_softplus(x))
    return y
