"""The last of a batch-aware policy's three choices: send each token to its best experts among those that its lane
keeps.

T token rows, E experts, K top-k, G lanes, X sets of experts, W columns afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing

_TINY, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def factor_of(mass: float | Tensor, total: Tensor) -> Tensor:
    """What scores that sum to `total` are multiplied by, so that they hold `mass`: always finite, so that scores of 0
    weigh 0 whatever mass they would have to hold, as those of a router that renormalises do."""
    return (mass / total.clamp_min(_TINY)).clamp_max(_LARGEST)


def restrict(
    routing: Routing,
    sets_XE: Tensor,
    set_T: Tensor,
    changes_T: Tensor,
    rule: RouterRule,
    slots: int | None = None,
) -> Routing:
    """Routing with each row of `changes_T` sent to its best experts within its set, `sets_XE[set_T]`: K of them, or
    `slots`.

    "Best" is the router's own choice, its groups and bias included. A row whose set holds fewer experts that the
    router would choose from leaves slots empty; one whose set holds none stays as it is. With K slots, rows whose own
    top-K lies within stay bit for bit as they are, so keeping every expert is exactly vanilla. An expert that the
    router's choice has at -inf runs in no row that changes; a router that has fewer than K others to choose from fills
    up its own top-K with such, and that stands where the row stays.

    Weights follow the rule: a renormalising router renormalises; for any other the token keeps its original top-K
    mass (Lynx v3, the mass-preserving rescale). Experts whose scores are all 0 weigh 0.
    """
    choice, scores = routing.choice(rule), routing.scores(rule)
    slots = routing.top_k if slots is None else slots
    width = max(slots, routing.top_k)
    simple = rule.expert_scale is None and rule.scaling == 1.0
    if simple and native.usable(choice, scores, routing.weights) and routing.weights.dtype == scores.dtype:
        experts, weights = native.restrict(
            choice.numpy(),
            scores.numpy(),
            routing.experts.numpy(),
            routing.weights.numpy(),
            sets_XE.numpy(),
            set_T.numpy(),
            changes_T.numpy(),
            rule.renormalize,
            slots,
        )
        return Routing(logits=routing.logits, experts=torch.from_numpy(experts), weights=torch.from_numpy(weights))
    inside_TE = sets_XE[set_T]
    allowed_TE = inside_TE & (choice > -torch.inf)
    masked_TE = choice.masked_fill(~allowed_TE, -torch.inf)
    experts_TW = masked_TE.argsort(dim=-1, descending=True, stable=True)[:, :width]
    empty_TW = ~allowed_TE.gather(-1, experts_TW)
    empty_TW[:, slots:] = True
    changes_T1 = (changes_T & allowed_TE.any(-1))[:, None]
    if slots == routing.top_k:
        changes_T1 = changes_T1 & ~inside_TE.gather(-1, routing.experts).all(-1, keepdim=True)
    experts_TW = torch.where(empty_TW, experts_TW[:, :1], experts_TW)
    raw_TW = scores.gather(-1, experts_TW).masked_fill(empty_TW, 0.0)
    weights_TW = _normalised(raw_TW, experts_TW, routing, rule).to(routing.weights.dtype)
    before_experts, before_weights = _widen(routing, width)
    return Routing(
        logits=routing.logits,
        experts=torch.where(changes_T1, experts_TW, before_experts),
        weights=torch.where(changes_T1, weights_TW, before_weights),
    )


def drop_slots(routing: Routing, dropped_TK: Tensor, rule: RouterRule, keep_mass: bool) -> Routing:
    """Routing without the slots of `dropped_TK`; at least one slot of each row must stay.

    The slots left move to the front; an emptied slot repeats the row's first expert with weight 0, so no expert is
    read for it. A renormalising router renormalises; another one keeps the original mass if `keep_mass`, else the
    slots' own weights.
    """
    if rule.expert_scale is None and native.usable(routing.weights) and routing.weights.dtype == torch.float32:
        experts, weights = native.drop_slots(
            routing.experts.numpy(), routing.weights.numpy(), dropped_TK.numpy(), rule.renormalize or keep_mass
        )
        return Routing(logits=routing.logits, experts=torch.from_numpy(experts), weights=torch.from_numpy(weights))
    order_TK = dropped_TK.long().argsort(dim=-1, stable=True)
    empty_TK = dropped_TK.gather(-1, order_TK)
    experts_TK = routing.experts.gather(-1, order_TK)
    experts_TK = torch.where(empty_TK, experts_TK[:, :1], experts_TK)
    raw_TK = routing.weights.float()
    if rule.expert_scale is not None:
        raw_TK = raw_TK / rule.expert_scale.float()[routing.experts]
    left_TK = raw_TK.gather(-1, order_TK).masked_fill(empty_TK, 0.0)
    if rule.renormalize or keep_mass:
        left_TK = left_TK * factor_of(raw_TK.sum(-1, keepdim=True), left_TK.sum(-1, keepdim=True))
    if rule.expert_scale is not None:
        left_TK = left_TK * rule.expert_scale.float()[experts_TK]
    touched_T1 = dropped_TK.any(-1, keepdim=True)
    return Routing(
        logits=routing.logits,
        experts=torch.where(touched_T1, experts_TK, routing.experts),
        weights=torch.where(touched_T1, left_TK.to(routing.weights.dtype), routing.weights),
    )


def reweigh(routing: Routing, experts_TK: Tensor, rule: RouterRule) -> Tensor:
    """`[T, K]` combine weights that the rule gives `experts_TK` instead of the routing's own experts."""
    return _normalised(routing.scores(rule).gather(-1, experts_TK), experts_TK, routing, rule).to(routing.weights.dtype)


def _normalised(raw_TW: Tensor, experts_TW: Tensor, original: Routing, rule: RouterRule) -> Tensor:
    mass_T1: float | Tensor = rule.scaling
    if not rule.renormalize:  # a token's mass is that before each expert's scale, which multiplies last
        own_TK = original.weights.float()
        own_TK = own_TK if rule.expert_scale is None else own_TK / rule.expert_scale.float()[original.experts]
        mass_T1 = own_TK.sum(-1, keepdim=True)
    weights_TW = raw_TW * factor_of(mass_T1, raw_TW.sum(-1, keepdim=True))
    return weights_TW if rule.expert_scale is None else weights_TW * rule.expert_scale.float()[experts_TW]


def _widen(routing: Routing, width: int) -> tuple[Tensor, Tensor]:
    """(experts, weights) of the routing with at least `width` slots, the new ones empty."""
    extra = width - routing.top_k
    if extra <= 0:
        return routing.experts, routing.weights
    return (
        torch.cat([routing.experts, routing.experts[:, :1].expand(-1, extra)], -1),
        torch.cat([routing.weights, routing.weights.new_zeros(len(routing.weights), extra)], -1),
    )
