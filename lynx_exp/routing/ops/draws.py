"""Random numbers that do not depend on how lanes are packed: hashes of (seed, layer, lane and step, row, expert)."""

from __future__ import annotations

from torch import Tensor

LOW_32 = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash on int64 tensors; products stay below 2^63."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & LOW_32
    return x ^ (x >> 16)


def mix_64(x: Tensor) -> Tensor:
    """A 32-bit hash of all 64 bits of int64 tensors."""
    return mix(mix(x & LOW_32) ^ ((x >> 32) & LOW_32))
