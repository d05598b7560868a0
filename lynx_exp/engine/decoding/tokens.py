"""What became of every decoded token: how sure each layer's router was of it, which experts ran for it, and how far the
distribution after it moved from vanilla's.

R responses, T tokens of the longest response, L layers, W slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_exp.models import Record


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """The tokens of one response that were fed in a decode step: all but its last, N of them."""

    steps: list[int]
    """The lane's decode step in which each was fed."""
    kl_N: Tensor
    """KL(vanilla || policy) of the next-token distribution after it, nats."""
    confidence_NL: Tensor
    """The routers' in vanilla's pass over the same text (`Routing.confidence`)."""
    experts_NLW: Tensor
    """What ran for it under the policy; -1 where a slot runs nothing."""


def decode_rows_of(per_layer: list[Tensor], rows: int, width: int) -> Tensor:
    """`[R, T-1, L, ...]` of what each layer recorded of all its token rows: those of decode steps come last in a row of
    the batch."""
    return torch.stack([each.view(rows, -1, *each.shape[1:])[:, -width:] for each in per_layer], 2)


def experts_of(record: Record, rows: int, width: int) -> Tensor:
    """`[R, T-1, L, W]` int64; -1 where a slot runs nothing."""
    most = max(experts.shape[-1] for experts, _, _ in record)
    ran = [
        torch.nn.functional.pad(experts.masked_fill(weights == 0, -1), (0, most - experts.shape[-1]), value=-1)
        for experts, weights, _ in record
    ]
    return decode_rows_of(ran, rows, width)
