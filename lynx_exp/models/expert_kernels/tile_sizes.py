"""Tile shapes of `few_rows`, by the mean number of rows an expert has and the sizes D and I.

Measured on one H100 80 GB (driver 580, torch 2.11.0, triton 3.6.0), bf16, random weights, by times of replayed graphs
of three layers over BM 16 to 128 and up to nine (BN, BK, warps, stages), with a prototype of these kernels:

    Qwen3-30B-A3B (E 128, K 8, D 2048, I 768), rows 16 to 256; Mixtral-8x7B (E 8, K 2, D 4096, I 14336), rows 1 to 256.

Extrapolated, not measured: 512 rows, other types than bf16, transposed and interleaved weights, other cards. Only
shapes and the card decide, never the routing: so the bits of a row do not depend on the others.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Of one launch."""

    rows: int
    """BM: 16 at least, the least that a matrix unit takes."""
    columns: int
    """BN."""
    depth: int
    """BK."""
    warps: int
    stages: int

    def bytes(self, itemsize: int, gated: bool) -> int:
        """Shared memory that its pipeline takes."""
        return self.stages * self.depth * (self.rows + self.columns * (2 if gated else 1)) * itemsize


class Tiles(NamedTuple):
    up: Tile
    down: Tile


_SMALL = 4 * 2**20
"""D * I up to which an expert is small: Qwen3's 1.5 Mi, not Mixtral's 56 Mi."""
_MEASURED: list[tuple[float, bool, Tiles]] = [
    (1, True, Tiles(Tile(16, 32, 128, 4, 4), Tile(16, 32, 128, 2, 4))),
    (8, False, Tiles(Tile(16, 64, 128, 4, 3), Tile(16, 64, 128, 4, 3))),
    (16, False, Tiles(Tile(32, 64, 128, 4, 3), Tile(32, 64, 128, 4, 3))),
    (32, False, Tiles(Tile(64, 64, 128, 4, 3), Tile(64, 64, 128, 4, 3))),
    (float("inf"), False, Tiles(Tile(128, 64, 64, 4, 4), Tile(128, 64, 64, 4, 4))),
]
"""(rows an expert up to which it holds, whether for small experts only, tiles): the first that fits."""
_IEEE = Tiles(Tile(16, 32, 32, 4, 3), Tile(16, 32, 32, 4, 3))
"""float32: without matrix units, each thread holds what it multiplies. Not measured."""
_LEAST_DEPTH = 16
MOST_SHARED = 232_448
"""Bytes of an H100's block; the interpreter has no bound."""


def tiles(rows_per_expert: float, hidden: int, inner: int, *, itemsize: int, gated: bool, shared: int) -> Tiles:
    """For so many rows an expert on average; `shared`: bytes that a block of the card has.

    ValueError if even the smallest pipeline does not fit.
    """
    if itemsize == 4:
        best = _IEEE
    else:
        small = hidden * inner <= _SMALL
        best = next(t for most, only_small, t in _MEASURED if rows_per_expert <= most and (small or not only_small))
    return Tiles(
        _fitted(best.up, columns=inner, depth=hidden, itemsize=itemsize, gated=gated, shared=shared),
        _fitted(best.down, columns=hidden, depth=inner, itemsize=itemsize, gated=False, shared=shared),
    )


def _fitted(tile: Tile, *, columns: int, depth: int, itemsize: int, gated: bool, shared: int) -> Tile:
    """No larger than the matrix, with fewer stages and then less depth until it fits."""
    tile = tile._replace(
        columns=min(tile.columns, max(16, _power_of_2(columns))), depth=min(tile.depth, max(16, _power_of_2(depth)))
    )
    while tile.bytes(itemsize, gated) > shared:
        if tile.stages > 2:
            tile = tile._replace(stages=tile.stages - 1)
        elif tile.depth > _LEAST_DEPTH:
            tile = tile._replace(depth=tile.depth // 2)
        else:
            raise ValueError(
                f"{shared} bytes of shared memory are too few for a tile ({tile.bytes(itemsize, gated)} at least)"
            )
    return tile


def _power_of_2(size: int) -> int:
    """The least one that is no smaller."""
    return 1 << (size - 1).bit_length()
