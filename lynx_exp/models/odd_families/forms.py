"""The forms in which routers hand over their routing, and the routers that no policy can serve exactly.

T token rows, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lynx_exp.models.odd_families import odd_families

Output = tuple[Tensor, ...]
"""What a router of a known form returns."""

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a routing is read from what a router returns, and written back."""

    read: Callable[[Output], tuple[Tensor, Tensor, Tensor]]
    """Output -> logits `[T, E]`, weights `[T, K]`, experts `[T, K]`."""
    write: Callable[[Output, Tensor, Tensor], Output]
    """Output, new weights, new experts -> what the experts are given instead."""

    def make(self, logits: Tensor, weights: Tensor, experts: Tensor) -> Output:
        """The output of a router that makes these; for the forms that hold all three."""
        return self.write((logits, weights, logits), weights, experts)


TRIPLE = Form(read=lambda out: (out[0], out[1], out[2]), write=lambda out, weights, experts: (out[0], weights, experts))
"""(logits, weights, experts), as nearly all routers return them."""

REVERSED = Form(
    read=lambda out: (out[2], out[1], out[0]), write=lambda out, weights, experts: (experts, weights, out[2])
)
"""(experts, weights, logits): Granite before transformers 5.21."""

PROBABILITIES = Form(read=lambda out: (out[0].float().clamp_min(_TINY).log(), out[1], out[2]), write=TRIPLE.write)
"""(softmax of the logits, weights, experts): Gemma 4. The logarithm of a softmax is the logits up to an offset."""

PARENT = Form(read=TRIPLE.read, write=lambda out, weights, experts: (weights, experts))
"""The router returns logits only; its parent turns them into (weights, experts) in `route_tokens_to_experts`: DBRX."""


class ChoosesExperts(Protocol):
    """The parent of such a router."""

    route_tokens_to_experts: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Logits `[T, E]` -> weights and experts, `[T, K]` each."""


def scattered(top_k: int) -> Form:
    """(weights `[T, E]` with zeros outside the top-k, logits): Llama 4, whose experts read their weight from there."""

    def read(out: Output) -> tuple[Tensor, Tensor, Tensor]:
        weights_TE, logits_TE = out
        experts_TK = logits_TE.topk(top_k, -1).indices
        return logits_TE, weights_TE.gather(-1, experts_TK), experts_TK

    def write(out: Output, weights: Tensor, experts: Tensor) -> Output:
        return torch.zeros_like(out[0]).scatter_add_(-1, experts, weights), out[1]

    return Form(read=read, write=write)


def form_of(module: nn.Module, out: object) -> Form | None:
    """The form of what a router returned; None if it is not known."""
    own = odd_families().get(type(module).__name__)
    if own is not None:
        return own.form
    if not isinstance(out, tuple) or not all(isinstance(part, Tensor) and part.dim() == 2 for part in out):
        return None
    if len(out) == 3 and not out[2].is_floating_point() and out[1].shape == out[2].shape:
        sums_T = out[0].float().sum(-1)
        shares = bool((out[0] >= 0).all()) and torch.allclose(sums_T, torch.ones_like(sums_T), atol=1e-2)
        return PROBABILITIES if shares else TRIPLE
    if len(out) == 3 and not out[0].is_floating_point() and out[0].shape == out[1].shape:
        return REVERSED
    top_k = getattr(module, "top_k", None)
    if len(out) == 2 and out[0].shape == out[1].shape and isinstance(top_k, int):
        return scattered(top_k) if bool((out[0].count_nonzero(-1) <= top_k).all()) else None
    return None


_JETMOE = "routes attention heads too, and hands its experts a list sorted by expert instead of a token's experts"
REFUSED = {
    "DogeCDMoE": "picks from a product key, by the sum of two logits, among experts of one column each",
    "InklingTopkRouter": "its experts share one denominator with the shared experts: other experts for a token would "
    "also change how much the shared ones weigh",
    "JetMoeAttention": _JETMOE,
    "JetMoeTopKGating": _JETMOE,
    "LongcatFlashTopkRouter": "some of its experts are the identity and read no weights: active experts would count "
    "what costs nothing",
    "PhimoeTopKRouter": "weighs an expert against those within a margin of it (sparsemixer), not by a score of its own",
    "ZayaRouter": "may choose to skip the experts, and hands its state on to the next layer's router",
}
"""Router class: why it is refused by name."""

_BLOCK_CHOOSES = "has no router but a linear layer, and its blocks choose the experts: transformers 5.21 gives it one"
ROUTERLESS = {"AriaTextForCausalLM": _BLOCK_CHOOSES, "JambaForCausalLM": _BLOCK_CHOOSES}
"""Model class: why it is refused where its routers are not found."""
