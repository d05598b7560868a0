"""Experts that no policy takes from a token (`policy.protect`): "super experts", of which a handful carry a model (Su
et al., arXiv 2507.23279: without three of its 6,144 experts Qwen3-30B-A3B writes nothing of sense).

A protected expert among a token's own top-K runs for it, whatever the policy says: in a slot that the policy left
empty, else in place of the expert that the router wants least of those that run and are not protected ones of the
token. Rows that lost no protected expert are, to the bit, as the policy left them. The others hand their experts the
mass that the router hands a token, by their scores: as `weights=mass`, and then as `policy.weights` says.

An expert that the router shuts out, and that filled up a top-K, is nobody's.

Which are protected is given, or found by `lynx-prepare calibrate` (`super_experts`).

T token rows, E experts, K top-k, W slots afterwards, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lynx_exp.routing.backends.numba import native, native_protect
from lynx_exp.routing.ops.lanes import mask_of
from lynx_exp.routing.ops.weigh import weigh
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing

PERCENTILE = 0.995
SHARE = 0.1


def keep_protected(before: Routing, after: Routing, protected_E: Tensor, rule: RouterRule) -> Routing:
    """`after` with the protected experts of `before` (bool `[E]`) that it no longer runs."""
    choice_TE, experts_TW = before.choice(rule), after.experts
    num_experts, width = choice_TE.shape[-1], experts_TW.shape[-1]
    scores_TE = before.scores(rule)
    floats = after.weights.dtype == before.weights.dtype == torch.float32
    if floats and native.usable(choice_TE, scores_TE, after.weights):
        scale_E = torch.empty(0) if rule.expert_scale is None else rule.expert_scale.float()
        given = (choice_TE, scores_TE, before.experts, before.weights, experts_TW, after.weights, protected_E, scale_E)
        arrays = (*(each.numpy() for each in given), rule.renormalize, rule.scaling)
        experts, weights = map(torch.from_numpy, native_protect.keep_protected(*arrays))
        return Routing(logits=after.logits, experts=experts, weights=weights)
    running_TE = mask_of(experts_TW, num_experts)
    needed_TE = mask_of(before.experts, num_experts) & protected_E & (choice_TE > -torch.inf)
    lost_T1 = (needed_TE & ~running_TE).any(-1, keepdim=True)
    order_TE = choice_TE.argsort(dim=-1, descending=True, stable=True)
    wanted_TE = (running_TE | needed_TE).int() + needed_TE.int()
    first_TE = wanted_TE.gather(-1, order_TE).argsort(dim=-1, descending=True, stable=True)
    runs_TE = mask_of(order_TE.gather(-1, first_TE[:, :width]), num_experts) & (wanted_TE > 0)
    sorted_TE = runs_TE.gather(-1, order_TE)
    place_TW = sorted_TE.int().argsort(dim=-1, descending=True, stable=True)[:, :width]
    made_TW = order_TE.gather(-1, place_TW)
    made_TW = torch.where(sorted_TE.gather(-1, place_TW), made_TW, made_TW[:, :1])
    experts_TW = torch.where(lost_T1, made_TW, experts_TW)
    # a row that has its own top-K again has its own weights again
    own_TW = pad(before.weights, (0, width - before.top_k)).to(after.weights.dtype)
    fresh = weigh(before, Routing(logits=after.logits, experts=experts_TW, weights=own_TW), rule, "mass", None)
    weights_TW = torch.where(lost_T1, fresh.weights, after.weights)
    return Routing(logits=after.logits, experts=experts_TW, weights=weights_TW)


def super_experts(largest_LE: Tensor) -> list[tuple[int, ...]]:
    """The super experts of each layer, from the largest magnitude in each expert's output.

    Those above the 99.5th percentile of all experts of the model, and above a tenth of the largest (equation 8 of the
    paper's first version). It asks, too, that the layer is one where the hidden states' massive activations arise,
    which is not measured here. Of fewer than 200 experts it is the one with the largest output.
    """
    limit = max(largest_LE.double().quantile(PERCENTILE).item(), SHARE * largest_LE.max().item())
    return [tuple(torch.nonzero(row_E.double() > limit)[:, 0].tolist()) for row_E in largest_LE]
