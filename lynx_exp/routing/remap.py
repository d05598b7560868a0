"""The last of a batch-aware policy's three choices: send each token to its best experts among those that its lane
keeps.

T token rows, E experts, K top-k, G lanes, X sets of experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lynx_exp.routing import native
from lynx_exp.routing.types import RouterRule, Routing


def weigh(scores_TE: Tensor, experts_TK: Tensor, original: Routing, rule: RouterRule) -> Tensor:
    """`[T, K]` combine weights of `experts_TK`: a renormalising router renormalises; for any other the token keeps
    its original top-K mass (Lynx v3, the mass-preserving rescale).
    """
    weights_TK = scores_TE.gather(-1, experts_TK)
    total_T1 = weights_TK.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    mass_T1 = 1.0 if rule.renormalize else original.weights.float().sum(-1, keepdim=True)
    return (weights_TK * (mass_T1 / total_T1)).to(original.weights.dtype)


def restrict(routing: Routing, sets_XE: Tensor, set_T: Tensor, changes_T: Tensor, rule: RouterRule) -> Routing:
    """Routing with each row of `changes_T` sent to its K best experts within its set, `sets_XE[set_T]`.

    The set of such a row must hold at least K experts. Rows whose own top-K lies within stay bit for bit as they are,
    so keeping every expert is exactly vanilla.
    """
    logits, scores = routing.logits, routing.scores(rule)
    if native.usable(logits, scores, routing.weights) and routing.weights.dtype == scores.dtype:
        experts, weights = native.restrict(
            logits.numpy(),
            scores.numpy(),
            routing.experts.numpy(),
            routing.weights.numpy(),
            sets_XE.numpy(),
            set_T.numpy(),
            changes_T.numpy(),
            rule.renormalize,
        )
        return Routing(logits=logits, experts=torch.from_numpy(experts), weights=torch.from_numpy(weights))
    allowed_TE = sets_XE[set_T]
    changes_T1 = (changes_T & ~allowed_TE.gather(-1, routing.experts).all(-1))[:, None]
    masked_TE = logits.masked_fill(~allowed_TE, -torch.inf)
    experts_TK = masked_TE.argsort(dim=-1, descending=True, stable=True)[:, : routing.top_k]
    weights_TK = weigh(scores, experts_TK, routing, rule)
    return Routing(
        logits=logits,
        experts=torch.where(changes_T1, experts_TK, routing.experts),
        weights=torch.where(changes_T1, weights_TK, routing.weights),
    )


def drop_slots(routing: Routing, dropped_TK: Tensor, rule: RouterRule, keep_mass: bool) -> Routing:
    """Routing without the slots of `dropped_TK`; at least one slot of each row must stay.

    The slots left move to the front; an emptied slot repeats the row's first expert with weight 0, so no expert is
    read for it. A renormalising router renormalises; another one keeps the original mass if `keep_mass`, else the
    slots' own weights.
    """
    order_TK = dropped_TK.long().argsort(dim=-1, stable=True)
    empty_TK = dropped_TK.gather(-1, order_TK)
    experts_TK = routing.experts.gather(-1, order_TK)
    experts_TK = torch.where(empty_TK, experts_TK[:, :1], experts_TK)
    weights_TK = routing.weights.gather(-1, order_TK).float().masked_fill(empty_TK, 0.0)
    if rule.renormalize or keep_mass:
        mass_T1 = routing.weights.float().sum(-1, keepdim=True)
        weights_TK = weights_TK * (
            mass_T1 / weights_TK.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        )
    touched_T1 = dropped_TK.any(-1, keepdim=True)
    return Routing(
        logits=routing.logits,
        experts=torch.where(touched_T1, experts_TK, routing.experts),
        weights=torch.where(touched_T1, weights_TK.to(routing.weights.dtype), routing.weights),
    )
