"""`torch.ops.lynx_exp.route`: what torch.compile sees of a policy. It traces through vLLM's routers on a CPU, and would
bake the rows of one step into the compiled model; an operation of its own stays closed to it.

T token rows, E experts, K top-k, W slots of a token after a policy.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class RoutingWorker(Protocol):
    """What knows the rows of the step that runs."""

    def route(
        self, number: int, width: int, logits: Tensor, weights: Tensor, experts: Tensor, padded: int | None
    ) -> tuple[Tensor, Tensor]:
        """`[T, W]` weights and experts of layer `number`; `padded`: rows of the step, with padding."""
        ...


WORKERS: WeakValueDictionary[int, RoutingWorker] = WeakValueDictionary()
"""By the identity of what the forward contexts of a worker's engine have in common."""

_library = torch.library.Library("lynx_exp", "FRAGMENT")
_registered = False


def register() -> None:
    """Make the operation known to torch, once."""
    global _registered
    if not _registered:
        _library.define(
            "route(Tensor logits, Tensor weights, Tensor experts, int layer, int width) -> (Tensor, Tensor)"
        )
        _library.impl("route", _route, "CompositeExplicitAutograd")
        torch.library.register_fake("lynx_exp::route", _shapes, lib=_library)
        _registered = True


def _route(logits: Tensor, weights: Tensor, experts: Tensor, layer: int, width: int) -> tuple[Tensor, Tensor]:
    """`[T, W]` weights and experts; never the tensors that were given."""
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    padding = context.is_padding
    new_weights, new_experts = WORKERS[id(context.no_compile_layers)].route(
        layer, width, logits, weights, experts, None if padding is None else len(padding)
    )
    return (
        new_weights.clone() if new_weights is weights else new_weights,
        new_experts.clone() if new_experts is experts else new_experts,
    )


def _shapes(logits: Tensor, weights: Tensor, experts: Tensor, layer: int, width: int) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return weights.new_empty(rows, width), experts.new_empty(rows, width)
