"""What every launch is given, and how rows are cut into blocks.

A selection is a chain of dependent steps of a few values each: on a GPU its time is that of loads, reductions and the
fetching of code that runs once, not of work. In one block of 16 rows and four warps `no_drop` took 13 us on an H100,
where a policy of single rows takes 1.6 (benchmarks/results). So a program has one warp where it can, whose reductions
need no barrier, and few rows, which makes it short. What these blocks take has not been measured yet.

T token rows, E experts, K top-k, BT/BE their tile sizes.
"""

from __future__ import annotations

from typing import TypedDict

from triton import next_power_of_2

A_WARP = 256
"""Values of a tile that one warp works on: 8 a thread."""
MOST_A_WARP = 1024
"""The same where blocks are wider, so as to be few."""
ONE_BLOCK = 4
"""Rows of a step, up to which one program serves a lane in one launch; more are cut into blocks, in two launches or
three."""
MOST_WARPS = 4
MOST_ROWS_A_BLOCK = 16
BLOCKS = 16
"""Blocks of a step, up to which they stay small: every program adds up what all blocks ask for."""
BLOCKS_AT_ONCE = 8
"""Whose sums a program loads side by side."""
AT_ONCE = (16, 64)
"""Rows of a lane that `coverage` keeps in registers: 16 where lanes have so many on average, else 64."""
MOST_AT_ONCE = 8192
"""Values of that tile, at most."""


class Sizes(TypedDict):
    """Arguments of a kernel, and how it is compiled."""

    num_rows: int
    """T."""
    E: int
    K: int
    BT: int
    BE: int
    num_warps: int
    num_stages: int
    enable_fp_fusion: bool


def row_blocks(rows: int, experts: int, top_k: int) -> Sizes:
    """For rows that need nothing of one another: a warp a block."""
    return _sizes(rows, experts, top_k, _least(experts))


def lane_blocks(rows: int, experts: int, top_k: int) -> Sizes:
    """For programs each of which adds up what the blocks of all rows ask for: one block if it can be, else few."""
    least = _least(experts)
    if rows <= ONE_BLOCK and next_power_of_2(rows) * next_power_of_2(experts) <= 4 * MOST_A_WARP:
        return _sizes(rows, experts, top_k, max(least, next_power_of_2(rows)))
    return _sizes(rows, experts, top_k, min(MOST_ROWS_A_BLOCK, least * next_power_of_2(-(-rows // (least * BLOCKS)))))


def _least(experts: int) -> int:
    block_experts: int = next_power_of_2(experts)
    return min(MOST_ROWS_A_BLOCK, max(1, A_WARP // block_experts))


def _sizes(rows: int, experts: int, top_k: int, block_rows: int) -> Sizes:
    values = block_rows * next_power_of_2(experts)
    return {
        "num_rows": rows,
        "E": experts,
        "K": top_k,
        "BT": block_rows,
        "BE": next_power_of_2(experts),
        "num_warps": min(MOST_WARPS, max(1, values // MOST_A_WARP)),
        "num_stages": 1,
        "enable_fp_fusion": False,  # the torch definitions round after each operation
    }
