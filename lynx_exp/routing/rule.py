"""How a model's routers turn logits into a choice of experts and their combine weights.

T token rows, E experts, K top-k, H groups of experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

_TINY = torch.finfo(torch.float32).tiny
_SMALLEST = 1e-6
"""Mass of an expert whose bias takes it below all others: the logit view of it stays finite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RouterRule:
    """A policy that picks other experts for a token weighs them, and ranks them, by this rule of the model's own."""

    score: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax"
    """From logits to scores; softmax after the top-k is softmax before it, renormalised."""
    renormalize: bool = True
    """True: the K weights sum to `scaling`. False: they are the scores times `scaling`."""
    scaling: float = 1.0
    bias: Tensor | None = None
    """`[E]` added for the choice of experts only, never to their weights (load balancing without a loss)."""
    bias_on: Literal["scores", "logits"] = "scores"
    groups: int = 1
    """Experts come in this many groups of equal size, one after the other,"""
    top_groups: int = 1
    """of which a token may use so many,"""
    group_score: Literal["max", "top2"] = "max"
    """the best by the largest, or by the two largest, of what the choice goes by."""
    expert_scale: Tensor | None = None
    """`[E]` multiplied into the weights last."""

    @property
    def grouped(self) -> bool:
        """Whether a token may use only some of the experts."""
        return self.top_groups < self.groups

    @cached_property
    def plain(self) -> bool:
        """Whether the choice goes by the logits and the weights are the scores, renormalised or not: as most routers
        do. Asked in every layer of every step."""
        return not self.grouped and self.bias is None and self.expert_scale is None and self.scaling == 1.0

    def scores(self, logits_TE: Tensor) -> Tensor:
        """`[T, E]` fp32 scores of all experts."""
        logits_TE = logits_TE.float()
        if self.score == "softmax":
            return torch.softmax(logits_TE, -1)
        return torch.sigmoid(logits_TE) if self.score == "sigmoid" else softplus(logits_TE).sqrt()

    def choice(self, logits_TE: Tensor, scores_TE: Tensor) -> Tensor:
        """`[T, E]` by which the top-K is taken; -inf outside the token's groups. Without bias and groups, the
        logits. What is -inf here is shut out: no policy sends a token there. (A logit of -inf is, unless the rule adds
        a bias to its score of 0.)"""
        if self.bias is None:
            choice_TE = logits_TE
        else:
            choice_TE = (scores_TE if self.bias_on == "scores" else logits_TE) + self.bias.float()
        if not self.grouped:
            return choice_TE
        ranked_TE = scores_TE if self.bias is None else choice_TE
        ranked_THE = ranked_TE.unflatten(-1, (self.groups, -1))
        best_TH = ranked_THE.amax(-1) if self.group_score == "max" else ranked_THE.topk(2, -1).values.sum(-1)
        allowed_TH = torch.zeros_like(best_TH, dtype=torch.bool)
        allowed_TH.scatter_(-1, best_TH.topk(self.top_groups, -1).indices, True)
        allowed_TE = allowed_TH[..., None].expand_as(ranked_THE).flatten(-2)
        return choice_TE.masked_fill(~allowed_TE, -torch.inf)

    def route(self, logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """(experts `[T, K]` best first, their weights `[T, K]` fp32): the router itself, after its matrix. Ties go to
        the lower expert. K experts whose scores sum to 0 have weights of 0; of a sum below the smallest normal number
        only the sign of the weights is defined, since devices differ in what they flush to 0."""
        logits_TE = logits_TE.float()
        scores_TE = self.scores(logits_TE)
        experts_TK = self.choice(logits_TE, scores_TE).argsort(dim=-1, descending=True, stable=True)[:, :top_k]
        weights_TK = scores_TE.gather(-1, experts_TK)
        if self.renormalize:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True).clamp_min(_TINY)
        weights_TK = weights_TK * self.scaling
        return experts_TK, weights_TK if self.expert_scale is None else weights_TK * self.expert_scale[experts_TK]

    def mass(self, logits_TE: Tensor, scores_TE: Tensor, choice_TE: Tensor) -> Tensor:
        """`[T, E]` at least 0, in the order of the choice, and 0 for experts that it shuts out. A bias counts by its
        difference from the mean bias, since an offset common to all experts changes no choice; one of -inf, which shuts
        an expert out, is left out of that mean."""
        if self.bias is None:
            mass_TE = scores_TE
        elif self.bias_on == "logits":
            mass_TE = self.scores(logits_TE + self.bias.float())
        else:
            mean = self.bias.masked_fill(self.bias.isneginf(), torch.nan).nanmean()
            mass_TE = (scores_TE + (self.bias - mean).float()).clamp_min(_SMALLEST)
        if not self.grouped and (self.bias is None or self.bias_on == "logits"):
            return mass_TE
        return mass_TE.masked_fill(choice_TE == -torch.inf, 0.0)

    def affinity(self, logits_TE: Tensor, mass_TE: Tensor, choice_TE: Tensor) -> Tensor:
        """`[T, E]`: the logits that would give `mass` as scores; -inf where the choice is."""
        if self.bias is None or self.bias_on == "logits":
            return choice_TE
        if self.score == "softmax":
            return mass_TE.log()
        if self.score == "sigmoid":
            return mass_TE.clamp_max(1 - _SMALLEST).logit()
        return mass_TE.square().expm1().log()
