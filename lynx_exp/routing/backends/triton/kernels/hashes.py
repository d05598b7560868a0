"""The random numbers of `lynx_exp.routing.ops.draws`, inside a Triton kernel: the same bits."""

from __future__ import annotations

import triton
import triton.language as tl

LOW_32 = tl.constexpr(0xFFFFFFFF)
FACTOR = tl.constexpr(0x45D9F3B)
LAYER_FACTOR = 1_000_003
"""Of the seed (random_keep) or of the layer (reassign), in what makes their draws differ."""


@triton.jit
def mix(x):
    """`draws.mix` of an int64 that is 0 or more."""
    x = ((x ^ (x >> 16)) * FACTOR) & LOW_32
    x = ((x ^ (x >> 16)) * FACTOR) & LOW_32
    return x ^ (x >> 16)


@triton.jit
def mix_64(x):
    """`draws.mix_64` of any int64."""
    return mix(mix(x & LOW_32) ^ ((x >> 32) & LOW_32))


def signed(value: int) -> int:
    """The low 32 bits as an int32, which is what a kernel takes; `& LOW_32` of its int64 gives them back."""
    low = value & 0xFFFFFFFF
    return low - 2**32 if low >= 2**31 else low
