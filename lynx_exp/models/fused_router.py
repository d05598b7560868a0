"""A router's forward in two launches, its matrix and its rule (`routing.backends.triton.kernels.route`), instead of six
to thirty: vanilla and policies alike run it, where it is proved to give what the model's own forward gives (`fuse`).

T token rows, E experts, K top-k, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lynx_exp.models.odd_families.forms import Form, Output
from lynx_exp.routing import RouterRule, Routing
from lynx_exp.routing.backends.triton import kernels


class Product(NamedTuple):
    """How a router makes its logits of hidden states, with the model's tensors as they are now."""

    owner: nn.Module
    weight: str
    """Its name in `owner`."""
    biased: bool
    """Whether `owner.bias` is added."""
    wide: bool
    """In float32, whatever the weights are; else in their type."""
    dtype: torch.dtype
    """Of the logits that the router hands on."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[T, E]`."""
        weight: Tensor = getattr(self.owner, self.weight)
        kind = torch.float32 if self.wide else weight.dtype
        bias = cast(Tensor, self.owner.bias).to(kind) if self.biased else None
        return linear(hidden.reshape(-1, hidden.shape[-1]).to(kind), weight.to(kind), bias).to(self.dtype)


class FusedRouter:
    """Stands in for the forward of a router's module; where `kernel=torch`, where gradients are wanted, or inside of
    torch.compile the module's own runs."""

    def __init__(
        self,
        own: Callable[..., Output],
        form: Form,
        rule: Callable[[], RouterRule],
        product: Product,
        top_k: int,
        dtype: torch.dtype,
    ) -> None:
        """`dtype`: of the weights that the router hands on."""
        self.own, self._form, self._rule, self._product = own, form, rule, product
        self._top_k, self._dtype = top_k, dtype
        self.listeners = 0
        """Policies between the router and the experts, for whom a routing is kept until they take it."""
        self._made: Routing | None = None
        self.__signature__ = signature(own)  # which `probe` reads

    def __call__(self, hidden: Tensor, *more: object, **named: object) -> Output:
        self._made = None
        differentiated = torch.is_grad_enabled() and hidden.requires_grad
        if differentiated or torch.compiler.is_compiling() or not kernels.chosen(hidden):
            return self.own(hidden, *more, **named)
        routing, logits = self.route(hidden)
        if self.listeners:
            self._made = routing
        return self._form.make(logits, routing.weights, routing.experts)

    def route(self, hidden: Tensor) -> tuple[Routing, Tensor]:
        """(the routing, the logits as the router hands them on)."""
        from lynx_exp.routing.backends.triton.kernels.route import route

        logits = self._product(hidden)
        return route(logits, self._rule(), self._top_k, self._dtype), logits

    def take(self) -> Routing | None:
        """What the last call made, with all that is known of it, best expert first; None if the module's own forward
        ran."""
        made, self._made = self._made, None
        return made


def fused_of(module: nn.Module) -> FusedRouter | None:
    """What stands in for the module's forward, if something does."""
    found = vars(module).get("forward")
    return found if isinstance(found, FusedRouter) else None
