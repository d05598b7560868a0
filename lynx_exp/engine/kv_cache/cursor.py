"""Where a decode step writes into the slots.

R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Cursor:
    """Where the next decode step writes."""

    rows: Tensor
    """`[R]`: 0..R-1."""
    position: Tensor
    """`[R]`: of the token that is fed."""
    width: int
    """Columns that attention reads; more than every position."""

    def mask(self) -> Tensor:
        """`[R, 1, 1, width]` bool: the columns that each row sees."""
        return (torch.arange(self.width, device=self.position.device) <= self.position[:, None])[:, None, None]
