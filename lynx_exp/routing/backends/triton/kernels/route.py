"""The launch of `routers`: from a router's logits to a routing, and what policies will ask it for, in one.

T token rows, E experts, K top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton import JITFunction, next_power_of_2

from lynx_exp.routing.backends.triton.kernels.router_rules import (
    LOGITS,
    NONE,
    SCORES,
    SIGMOID,
    SOFTMAX,
    SQRT_SOFTPLUS,
    route_kernel,
)
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing

_SCORE = {"softmax": SOFTMAX.value, "sigmoid": SIGMOID.value, "sqrtsoftplus": SQRT_SOFTPLUS.value}
_BIAS = {"scores": SCORES.value, "logits": LOGITS.value}
_COLUMNS_A_WARP = 256
"""Of a row, up to which one warp serves it: its sums then need no shared memory. Not measured yet."""


def route(logits_TE: Tensor, rule: RouterRule, top_k: int, dtype: torch.dtype) -> Routing:
    """What `rule.route(logits_TE, top_k)` gives, the weights as `dtype`, up to rounding: equal experts unless two that
    the rule ranks are within some units in the last place of one another. Ties go to the lower expert, as in
    torch.topk's own kernel for CUDA (gatherTopK takes the k-th value's duplicates in order of their index).

    Where two experts tie in a score (two logits above 17 under a sigmoid), but not in what the rule's choice goes by,
    the choice decides. A row with a NaN has NaN weights, as in torch, and the NaN's experts first.
    """
    logits_TE = logits_TE.contiguous()
    choice = None if _as_they_came(logits_TE, rule) else torch.empty_like(logits_TE, dtype=torch.float32)
    experts, weights, scores = _launch(
        logits_TE,
        rule.bias,
        rule.expert_scale,
        choice,
        [_SCORE[rule.score], NONE.value if rule.bias is None else _BIAS[rule.bias_on]],
        [rule.groups, rule.top_groups] if rule.grouped else [1, 1],
        rule.group_score == "top2",
        rule.renormalize,
        float(rule.scaling),
        top_k,
        dtype,
    )
    chosen = logits_TE if choice is None else choice
    logits = chosen if rule.bias is None and not rule.grouped else logits_TE.float()
    routing = Routing(logits=logits, experts=experts, weights=weights)
    routing.remember(rule, scores=scores, choice=chosen)
    return routing


def warps(columns: int) -> int:
    """Of the program of a row so wide."""
    return max(1, columns // _COLUMNS_A_WARP)


def _as_they_came(logits_TE: Tensor, rule: RouterRule) -> bool:
    """Whether the choice goes by the very numbers that are there."""
    return rule.bias is None and not rule.grouped and logits_TE.dtype == torch.float32


def _launch(
    logits: Tensor,
    bias: Tensor | None,
    expert_scale: Tensor | None,
    choice: Tensor | None,
    kinds: list[int],
    groups: list[int],
    top2: bool,
    renormalize: bool,
    scaling: float,
    top_k: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """(experts, weights, scores)."""
    if isinstance(route_kernel, JITFunction) and not logits.is_cuda:
        raise RuntimeError("on a CPU the kernels run only where TRITON_INTERPRET=1 was set beforehand")
    rows, num_experts = logits.shape
    scores = torch.empty_like(logits, dtype=torch.float32)
    experts = torch.empty(rows, top_k, dtype=torch.int64, device=logits.device)
    weights = torch.empty(rows, top_k, dtype=dtype, device=logits.device)
    size = num_experts // groups[0]
    block_groups, block_size = next_power_of_2(groups[0]), next_power_of_2(size)
    if rows:
        with torch.cuda.device_of(logits):
            route_kernel[(rows,)](
                logits,
                scores if bias is None else bias,  # what is not used still has to point somewhere
                scores if expert_scale is None else expert_scale,
                scores,
                scores if choice is None else choice,
                experts,
                weights,
                scaling,
                SCORE=kinds[0],
                BIAS=kinds[1],
                H=groups[0],
                TOP_GROUPS=groups[1],
                TOP2=top2,
                RENORMALIZE=renormalize,
                SCALED=expert_scale is not None,
                CHOOSES=choice is not None,
                S=size,
                K=top_k,
                BH=block_groups,
                BS=block_size,
                BK=next_power_of_2(top_k),
                num_warps=warps(block_groups * block_size),
                num_stages=1,
                enable_fp_fusion=False,  # the torch definition rounds after each operation
            )
    return experts, weights, scores
