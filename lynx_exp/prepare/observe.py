"""Forward passes of a plain model in which each layer's routing, and what its experts read, goes to its `LayerFacts`.

R sequences of a batch, N positions, T token rows (R times N), H and D widths of what router and experts read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from lynx_exp.models import Router, UnsupportedModel
from lynx_exp.prepare.layer_facts import LayerFacts
from lynx_exp.prepare.single_experts import Experts
from lynx_exp.routing import Routing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OnLayer = Callable[[], None]
"""Called when a layer has been served in one pass."""
Given: TypeAlias = tuple[Tensor, ...]
"""What a module is called with."""
Chose: TypeAlias = Callable[[int, Routing], None]
Reads: TypeAlias = Callable[[int, nn.Module, Given], None]
Replace: TypeAlias = Callable[[int, nn.Module, Given], Given]


class Observed:
    """A model with the experts of its routers, and where what they read is to go."""

    def __init__(
        self, model: PreTrainedModel, routers: Sequence[Router], experts: Sequence[Experts], facts: Sequence[LayerFacts]
    ) -> None:
        self._model, self._routers, self._experts, self._facts = model, routers, experts, facts

    def read(self, batches: Iterable[tuple[Tensor, Tensor]], on_layer: OnLayer) -> None:
        """Text: (ids `[R, N]`, which of them are real) of each batch."""
        real_T = torch.empty(0)

        def chose(layer: int, routing: Routing) -> None:
            self._facts[layer].add_routing(routing, real_T)

        def reads(layer: int, _module: nn.Module, given: Given) -> None:
            self._facts[layer].add_hidden(given[0].reshape(len(real_T), -1)[real_T])
            on_layer()

        def passes() -> None:
            nonlocal real_T
            for ids_RN, real_RN in batches:
                real_T = real_RN.flatten()
                self._model.base_model(input_ids=ids_RN, use_cache=False)

        self._hooked(passes, chose, reads)

    def read_noise(self, lengths: Iterable[int], seed: int, on_layer: OnLayer) -> None:
        """Standard normal hidden states in place of the routers', in passes of these many. Each layer has the same
        ones."""
        generators = [torch.Generator().manual_seed(seed) for _ in self._routers]
        routed: dict[int, tuple[Tensor, Routing]] = {}
        noise_TH: dict[int, Tensor] = {}

        def replace(layer: int, _module: nn.Module, given: Given) -> Given:
            if not given:
                name = self._routers[layer].name
                raise UnsupportedModel(f"{name}: gets its hidden states by keyword; they cannot be replaced by noise")
            noise = torch.randn(given[0].shape, generator=generators[layer]).to(given[0])
            noise_TH[layer] = noise.flatten(0, -2)
            return noise, *given[1:]

        def chose(layer: int, routing: Routing) -> None:
            routed[layer] = noise_TH.pop(layer), routing

        def reads(layer: int, _module: nn.Module, given: Given) -> None:
            hidden, routing = routed.pop(layer)
            width = given[0].shape[-1]
            if hidden.shape[-1] != width:  # the experts read a projection
                hidden = torch.randn(len(hidden), width, generator=generators[layer]).to(hidden)
            self._facts[layer].add_gaussian(hidden, routing)
            on_layer()

        def passes() -> None:
            device = self._model.get_input_embeddings().weight.device
            for length in lengths:
                ids_RN = torch.zeros(1, length, dtype=torch.long, device=device)  # their own hidden states go unread
                self._model.base_model(input_ids=ids_RN, use_cache=False)

        self._hooked(passes, chose, reads, replace)

    @torch.inference_mode()
    def _hooked(self, passes: Callable[[], None], chose: Chose, reads: Reads, replace: Replace | None = None) -> None:
        """Run `passes` with a function of the layer behind each router, before its experts and before the router."""
        removers: list[Callable[[], None]] = []
        try:
            for layer, (router, experts) in enumerate(zip(self._routers, self._experts, strict=True)):
                removers.append(router.intercept(partial(chose, layer)))
                removers.append(experts.module.register_forward_pre_hook(partial(reads, layer)).remove)
                if replace is not None:
                    removers.append(router.module.register_forward_pre_hook(partial(replace, layer)).remove)
            passes()
        finally:
            for remove in removers:
                remove()
