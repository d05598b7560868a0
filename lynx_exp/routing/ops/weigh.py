"""What the experts of a token weigh once a policy has changed which of them run (`policy.weights`).

With p the router's scores of all experts, T a token's own top-K, S the experts that run for it now, and M the mass that
the router hands a token (its factor if it renormalises, else that factor times the sum of p over T), expert i of S
weighs M p_i / D:

  mass         D is the sum of p over S: the token keeps the mass of its top-K, whatever it runs.
  original     D is the sum of p over T: an expert weighs what it would in the router's own top-K, and what is dropped
               is lost.
  reference    D is the sum of p over the token's k2 best experts of all: K of them is `original`, all of them takes the
               token's scores as they are. Reference mass (arXiv 2609.04575; its abstract was read, and its equation 2
               as others quote it). On a router that does not renormalise, and has no sum of 1 to share out, its top-K
               mass takes the place of that 1 here, so that k2=K is `original` there, too.
  renormalize  The policy's own way, as published: nearly all renormalise over S (a router that does not keeps the
               token's mass), which is `mass` with another order of sums; `top_k` and `lexi` leave the weights of a
               router that does not renormalise as they are, `sere` and `reassign` may hand on the weight of the
               expert that was replaced.
  affine       As `renormalize`; then the layer's output is mapped (`lynx_exp.routing.alignment`).

"Best" is by the router's own choice, bias and groups included, as everywhere; p is never biased. A row that the policy
left as it was keeps its weights to the bit under all of them. An expert that fills two slots weighs once, in the first.

T token rows, E experts, K top-k, W slots afterwards.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.ops.remap import factor_of
from lynx_exp.routing.rule import RouterRule
from lynx_exp.routing.types import Routing

Weights = Literal["renormalize", "original", "mass", "reference", "affine"]

OWN_WAY: tuple[Weights, ...] = ("renormalize", "affine")
"""Where weights are the policy's own."""


def weigh(before: Routing, after: Routing, rule: RouterRule, weights: Weights, k2: int | None) -> Routing:
    """`after` with the weights of the rows whose experts are not those of `before`; `k2` None: K."""
    if weights in OWN_WAY or after.experts is before.experts:
        return after
    scores_TE, choice_TE = before.scores(rule), before.choice(rule)
    count = denominator_of(weights, k2, before.top_k)
    if native.usable(scores_TE, choice_TE, after.weights) and after.weights.dtype == torch.float32:
        scale_E = torch.empty(0) if rule.expert_scale is None else rule.expert_scale.float()
        made = native.weigh(
            choice_TE.numpy(),
            scores_TE.numpy(),
            before.experts.numpy(),
            after.experts.numpy(),
            after.weights.numpy(),
            scale_E.numpy(),
            count,
            rule.renormalize,
            rule.scaling,
        )
        return Routing(logits=after.logits, experts=after.experts, weights=torch.from_numpy(made))
    runs_TW = first_of_each(after.experts)
    raw_TW = scores_TE.gather(-1, after.experts).masked_fill(~runs_TW, 0.0)
    own_T1 = scores_TE.gather(-1, before.experts).sum(-1, keepdim=True)
    if count == RUNNING:
        total_T1 = raw_TW.sum(-1, keepdim=True)
    elif count == OWN:
        total_T1 = own_T1
    else:
        best_TC = choice_TE.argsort(dim=-1, descending=True, stable=True)[:, :count]
        open_TC = choice_TE.gather(-1, best_TC) > -torch.inf
        total_T1 = scores_TE.gather(-1, best_TC).where(open_TC, 0.0).sum(-1, keepdim=True)
    mass_T1 = rule.scaling if rule.renormalize else rule.scaling * own_T1
    weights_TW = raw_TW * factor_of(mass_T1, total_T1)
    if rule.expert_scale is not None:
        weights_TW = weights_TW * rule.expert_scale.float()[after.experts]
    changed_T1 = changed_rows(before, after, runs_TW)[:, None]
    weights_TW = torch.where(changed_T1, weights_TW.to(after.weights.dtype), after.weights)
    return Routing(logits=after.logits, experts=after.experts, weights=weights_TW)


RUNNING, OWN = -1, 0
"""Experts that `denominator_of` counts: those that run, and the router's own top-K."""


def denominator_of(weights: Weights, k2: int | None, top_k: int) -> int:
    """Over which experts D goes: RUNNING, OWN, or the best of this number."""
    if weights == "mass":
        return RUNNING
    return OWN if weights == "original" or k2 in (None, top_k) else k2


def first_of_each(experts_TW: Tensor) -> Tensor:
    """`[T, W]` bool: the slots whose expert no slot before has. A slot that runs nothing repeats the row's first."""
    same_TWW = experts_TW[:, :, None] == experts_TW[:, None, :]
    return ~same_TWW.tril(-1).any(-1)


def changed_rows(before: Routing, after: Routing, runs_TW: Tensor) -> Tensor:
    """`[T]` bool: rows that run other experts than the router chose, or in another order; `runs_TW` as
    `first_of_each` has it."""
    top_k = before.top_k
    return (after.experts[:, :top_k] != before.experts).any(-1) | runs_TW[:, top_k:].any(-1)
