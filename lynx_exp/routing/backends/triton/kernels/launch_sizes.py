"""What every launch is given.

T token rows, E experts, K top-k, BT/BE their tile sizes.
"""

from __future__ import annotations

from typing import TypedDict


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
