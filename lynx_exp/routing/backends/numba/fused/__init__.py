"""Fused selection for CPUs: score, keep and remap in one compiled call, for plain routers.

Between two layers of a decode step the experts' weights go through the caches and take everything else out of them. So
what a policy costs is how much code and how many objects a call touches: the loops of `backends.numba.native` took
forty Python frames and some ten arrays a layer, which was more than the selection itself. Here a layer takes one
softmax, two empty tensors, and one call that is given addresses and numbers, since a numpy view of a tensor costs as
much as a torch operation.

The scores are torch's own softmax, not one of the loops: where experts tie, the last bit of a score decides, and the
policies are defined by torch. Everything else is the same loops, so experts and weights are those of the other path.

What falls back (`select` returns None): tensors of other types or on other devices; rules with a bias,
groups, a factor or a scale for each expert; policies and parameters that `plan_of` does not know; no numba.

T token rows, E experts, K top-k, W columns afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.backends.numba.fused import loops
from lynx_exp.routing.backends.triton import kernels
from lynx_exp.routing.types import Routing

if TYPE_CHECKING:
    from lynx_exp.routing.rule import RouterRule
    from lynx_exp.routing.types import StepContext

_Rows = tuple[Tensor | None, Tensor | None, int, int, int, set[int]]
_UNFIT: _Rows = (None, None, -1, 0, 0, set())


class Plan(NamedTuple):
    """A policy in the terms of `loops.select`, in the order of its parameters."""

    keep: int
    min_batch: int = 1
    slots: int = 0
    """Experts of a token; 0: K."""
    first: int = 0
    """oea: k0. xshare: warm_up. coverage: guarantee. top_k: k."""
    budget: int = 2**31
    most: int = 2**31
    """xshare: max_batch."""
    variant: bool = False
    """lynx: whole bins. xshare: sum the logits."""
    a: float = 0.0
    """lynx: alpha. coverage: least gain of a row."""
    b: float = 0.0
    """lynx: lowest bin. coverage: floor."""
    c: float = 0.0
    """coverage: power."""


def select(plan: Plan, routing: Routing, step: StepContext, rule: RouterRule) -> Routing | None:
    """What the planned policy returns, lanes too small for it included; None if the loops do not serve this case."""
    if not (native.AVAILABLE and rule.plain) or kernels.current_kernel() == "triton":
        return None
    shared = step.shared
    _live, _lane, count, live_at, lane_at, idle = shared["fused"] if "fused" in shared else _rows(step)
    logits, experts, weights = routing.logits.contiguous(), routing.experts.contiguous(), routing.weights.contiguous()
    rows, top_k = experts.shape
    if not (
        rows == count
        and logits.is_cpu
        and logits.dtype is weights.dtype is torch.float32
        and experts.dtype is torch.int64
    ):
        return None
    if plan.min_batch in idle:
        return routing
    width = plan.slots if plan.slots > top_k else top_k
    new_experts = torch.empty_like(experts) if width == top_k else experts.new_empty(rows, width)
    new_weights = torch.empty_like(weights) if width == top_k else weights.new_empty(rows, width)
    if plan.keep == loops.TOP_K:
        scores = logits
    else:
        scores = torch.softmax(logits, -1) if rule.score == "softmax" else rule.scores(logits)
    if not loops.select(
        *plan,
        logits.data_ptr(),
        scores.data_ptr(),
        experts.data_ptr(),
        weights.data_ptr(),
        live_at,
        lane_at,
        new_experts.data_ptr(),
        new_weights.data_ptr(),
        rows,
        logits.shape[1],
        top_k,
        width,
        step.num_lanes,
        rule.renormalize,
    ):
        idle.add(plan.min_batch)
        return routing
    return Routing(routing.logits, new_experts, new_weights)


def _rows(step: StepContext) -> _Rows:
    """(live, lane, T, their addresses, the `min_batch` that no lane reaches), found once a forward pass; `_UNFIT` where
    the loops cannot read them. The tensors stay in it, so that the addresses hold."""
    live, lane = step.live.contiguous(), step.lane.contiguous()
    fits = live.is_cpu and lane.is_cpu and live.dtype is torch.bool and lane.dtype is torch.int64
    fits = fits and live.shape == lane.shape
    rows: _Rows = (live, lane, len(lane), live.data_ptr(), lane.data_ptr(), set()) if fits else _UNFIT
    step.shared["fused"] = rows
    return rows
