"""Reductions over lanes and choices within them: exact, free of row order, free of host synchronisation.

T token rows, E experts, K top-k, G lanes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_exp.routing.types import StepContext

_FIXED_POINT = 2.0**32


def lane_sum(values_TE: Tensor, step: StepContext) -> Tensor:
    """`[G, E]` float64: the sum of each lane's live rows.

    Summed as 64-bit fixed point (resolution 2^-32), since integer addition is associative: the result does not depend
    on the order of rows, on other lanes, or on how a GPU schedules atomics. Magnitudes up to 2^31 are safe.
    """
    fixed_TE = (values_TE.double() * _FIXED_POINT).round().where(step.live[:, None], 0.0).long()
    zeros_GE = fixed_TE.new_zeros(step.num_lanes, values_TE.shape[-1])
    return zeros_GE.index_add_(0, step.lane, fixed_TE).double() / _FIXED_POINT


def lane_size(step: StepContext) -> Tensor:
    """`[G]` int64: live rows of each lane."""
    return step.lane.new_zeros(step.num_lanes).index_add_(0, step.lane, step.live.long())


def lane_votes(experts_TK: Tensor, voting_T: Tensor, step: StepContext, num_experts: int) -> Tensor:
    """`[G, E]` int64: how many of each lane's rows in `voting_T` list each expert."""
    flat_TK = step.lane[:, None] * num_experts + experts_TK
    voting_TK = (voting_T & step.live)[:, None].expand_as(experts_TK)
    counts = flat_TK.new_zeros(step.num_lanes * num_experts)
    return counts.index_add_(0, flat_TK.reshape(-1), voting_TK.reshape(-1).long()).view(step.num_lanes, num_experts)


def best_first(*keys: Tensor) -> Tensor:
    """Indices along the last dimension, largest first by the first key, ties by the next, at last by lower index."""
    order = keys[-1].argsort(dim=-1, descending=True, stable=True)
    for key in reversed(keys[:-1]):
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    return order


def mask_of(indices: Tensor, size: int) -> Tensor:
    """Boolean mask over a last dimension of `size`, True at `indices` of the last dimension."""
    return torch.zeros(*indices.shape[:-1], size, dtype=torch.bool, device=indices.device).scatter_(-1, indices, True)
