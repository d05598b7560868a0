"""Reductions over lanes and choices within them: exact, free of row order, free of host synchronisation.

T token rows, E experts, K top-k, G lanes, C how many are asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.types import StepContext

_FIXED_POINT = 2.0**32
MOST_LOGIT = native.MOST_LOGIT


def lane_sum(values_TE: Tensor, step: StepContext) -> Tensor:
    """`[G, E]` float64: the sum of each lane's live rows.

    Summed as 64-bit fixed point (resolution 2^-32), since integer addition is associative: the result does not depend
    on the order of rows, on other lanes, or on how a GPU schedules atomics. Magnitudes up to 2^31 are safe.
    """
    if native.usable(values_TE):
        return torch.from_numpy(native.lane_sum(values_TE.numpy(), *native.arrays(step), step.num_lanes))
    fixed_TE = (values_TE.double() * _FIXED_POINT).round().where(step.live[:, None], 0.0).long()
    zeros_GE = fixed_TE.new_zeros(step.num_lanes, values_TE.shape[-1])
    return zeros_GE.index_add_(0, step.lane, fixed_TE).double() / _FIXED_POINT


def lane_logits(logits_TE: Tensor, step: StepContext) -> Tensor:
    """`[G, E]` float64: the sum of each lane's live rows of logits, which may be infinite.

    A row that shuts an expert out, by -inf or by a mask's large negative number, vetoes it: its sum is -inf, after all
    others. So that a sum cannot overflow, more than MOST_LOGIT counts as that, and less than -MOST_LOGIT as a veto.
    """
    if native.usable(logits_TE):
        return torch.from_numpy(native.lane_logits(logits_TE.numpy(), *native.arrays(step), step.num_lanes))
    vetoes_TE = ((logits_TE < -MOST_LOGIT) & step.live[:, None]).long()
    vetoes_GE = vetoes_TE.new_zeros(step.num_lanes, logits_TE.shape[-1]).index_add_(0, step.lane, vetoes_TE)
    return lane_sum(logits_TE.clamp(-MOST_LOGIT, MOST_LOGIT), step).masked_fill(vetoes_GE > 0, -torch.inf)


def lane_size(step: StepContext) -> Tensor:
    """`[G]` int64: live rows of each lane. Counted once a forward pass."""
    if "lane_size" not in step.shared:
        ones_G = step.lane.new_zeros(step.num_lanes)
        step.shared["lane_size"] = ones_G.index_add_(0, step.lane, step.live.long())
    size_G: Tensor = step.shared["lane_size"]
    return size_G


def lane_votes(experts_TK: Tensor, choice_TE: Tensor, voting_T: Tensor, step: StepContext) -> Tensor:
    """`[G, E]` int64: how many of each lane's live rows in `voting_T` list each expert.

    A row with fewer than K experts open to it fills up its list with others, at -inf in `choice_TE`: those get no vote
    of it.
    """
    num_experts = choice_TE.shape[-1]
    if native.usable(experts_TK, choice_TE):
        votes = native.lane_votes(
            experts_TK.numpy(), choice_TE.numpy(), voting_T.numpy(), *native.arrays(step), step.num_lanes
        )
        return torch.from_numpy(votes)
    flat_TK = step.lane[:, None] * num_experts + experts_TK
    voting_TK = (voting_T & step.live)[:, None] & (choice_TE.gather(-1, experts_TK) != -torch.inf)
    counts = flat_TK.new_zeros(step.num_lanes * num_experts)
    counts.index_add_(0, flat_TK.reshape(-1), voting_TK.reshape(-1).long())
    return counts.view(step.num_lanes, num_experts)


def best_first(first: Tensor, second: Tensor, count: int) -> Tensor:
    """`[..., C]` int64: indices of the largest by `first`, ties by `second`, then by lower index; best first."""
    order = second.argsort(dim=-1, descending=True, stable=True)
    return order.gather(-1, first.gather(-1, order).argsort(dim=-1, descending=True, stable=True))[..., :count]


def best_mask(first_GE: Tensor, second_GE: Tensor, count: int) -> Tensor:
    """`[G, E]` bool: each lane's best `count` by the first key, ties by the second, then by lower index."""
    if native.usable(first_GE, second_GE):
        return torch.from_numpy(native.best_mask(first_GE.numpy(), second_GE.numpy(), count))
    return mask_of(best_first(first_GE, second_GE, count), first_GE.shape[-1])


def mask_of(indices: Tensor, size: int) -> Tensor:
    """Boolean mask over a last dimension of `size`, True at `indices` of the last dimension."""
    return torch.zeros(*indices.shape[:-1], size, dtype=torch.bool, device=indices.device).scatter_(-1, indices, True)
