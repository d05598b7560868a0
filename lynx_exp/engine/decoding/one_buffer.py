"""Query, key and value projections of a layer in one buffer, for one product instead of three: the model's own
parameters become views into it, so that nothing is held twice, whatever the model's size.

Q, D sizes of all projections together and of their input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lynx_exp.engine.decoding.layer_types import Attention


class FusedProjections(NamedTuple):
    """Of one layer."""

    weight: Tensor
    """`[Q, D]`."""
    bias: Tensor | None
    """`[Q]`, a copy."""


@torch.inference_mode(False)
@torch.no_grad()
def fuse_projections(attention: Attention) -> FusedProjections:
    """The projections of an attention module. ValueError, with the reason, if they are no plain linear layers."""
    parts: list[nn.Linear] = [getattr(attention, f"{name}_proj") for name in "qkv"]
    every = [*parts, attention.o_proj]
    if not all(type(part) is nn.Linear and type(part.weight) is nn.Parameter for part in every):
        kinds = sorted({type(part).__name__ for part in every})
        raise ValueError(f"its projections are no plain linear layers ({', '.join(kinds)})")
    biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
    if biases and len(biases) < len(parts):
        raise ValueError("only some of its projections have a bias")
    whole = _whole([part.weight for part in parts])
    if whole is None:
        whole = torch.cat([part.weight for part in parts])
        start = 0
        for part in parts:
            stop = start + part.out_features
            part.weight.data = whole[start:stop]
            start = stop
    return FusedProjections(whole, torch.cat(biases) if biases else None)


def _whole(weights: Sequence[Tensor]) -> Tensor | None:
    """The buffer that they are views into, one behind the other; None: there is none yet."""
    first, rows = weights[0], sum(weight.shape[0] for weight in weights)
    at = first.storage_offset()
    for weight in weights:
        apart = weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
        if apart or weight.storage_offset() != at or not weight.is_contiguous():
            return None
        at += weight.numel()
    return first.detach().as_strided((rows, first.shape[1]), first.stride())
