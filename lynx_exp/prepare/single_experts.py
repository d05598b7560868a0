"""The single experts of any transformers MoE: found by what reaches them, proved by what they give.

transformers runs a layer's experts in one module, called with (hidden states, experts, weights). With every row sent
to one expert at weight 1, that module is that expert.

T token rows, E experts, K top-k, D width of what the experts read and write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lynx_exp.models import Router, UnsupportedModel
from lynx_exp.routing import Routing
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The experts of one layer."""

    module: nn.Module
    num_experts: int
    weight_dtype: torch.dtype

    def every(self, hidden_TD: Tensor) -> Tensor:
        """`[E, T, D]`: what each expert makes of every row."""
        tokens = len(hidden_TD)
        experts_ET = torch.arange(self.num_experts, device=hidden_TD.device).repeat_interleave(tokens)
        return self._one_each(hidden_TD.repeat(self.num_experts, 1), experts_ET).unflatten(0, (-1, tokens))

    def chosen(self, hidden_TD: Tensor, experts_TK: Tensor) -> Tensor:
        """`[T, K, D]`: what each row's own experts make of it, before their weights."""
        top_k = experts_TK.shape[1]
        return self._one_each(hidden_TD.repeat_interleave(top_k, 0), experts_TK.flatten()).unflatten(0, (-1, top_k))

    def _one_each(self, rows: Tensor, expert_of_row: Tensor) -> Tensor:
        ones = torch.ones(len(rows), 1, dtype=self.weight_dtype, device=rows.device)
        # `forward`, not a call: what hooks the module has are for the model's own pass
        return self.module.forward(rows, expert_of_row[:, None], ones).reshape(len(rows), -1)


@torch.inference_mode()
def find_experts(model: PreTrainedModel, routers: Sequence[Router]) -> list[Experts]:
    """The experts behind each router. UnsupportedModel names the first router whose experts cannot be run singly."""
    calls = _probe(model, routers)
    found = []
    for router in routers:
        if router.layer not in calls:
            raise _refusal(model, router, "no module is called with its (hidden states, experts, weights)")
        module, hidden, experts_TK, weights_TK = calls[router.layer]
        experts = Experts(module=module, num_experts=router.num_experts, weight_dtype=weights_TK.dtype)
        try:
            wrong = _error(experts, hidden.reshape(len(experts_TK), -1), experts_TK, weights_TK)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise _refusal(model, router, first_line(error)) from error
        if not wrong < (1e-4 if hidden.dtype == torch.float32 else 3e-2):
            raise _refusal(model, router, "the layer's output is not the weighted sum of what its experts give singly")
        found.append(experts)
    return found


def _refusal(model: nn.Module, router: Router, why: str) -> UnsupportedModel:
    return UnsupportedModel(f"{type(model).__name__}: {router.name}: its experts cannot be run one by one: {why}")


def _probe(model: PreTrainedModel, routers: Sequence[Router]) -> dict[int, tuple[nn.Module, Tensor, Tensor, Tensor]]:
    """By layer: the module that got a router's choice in a forward pass of a few tokens, and what it got."""
    last: list[tuple[int, Routing]] = []
    calls: dict[int, tuple[nn.Module, Tensor, Tensor, Tensor]] = {}

    def note(layer: int, routing: Routing) -> None:
        last.append((layer, routing))

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if last and last[-1][0] not in calls and len(given) >= 3 and _is_choice(given[1], last[-1][1]):
            hidden, experts_TK, weights_TK = given[:3]
            calls[last[-1][0]] = module, hidden, experts_TK, weights_TK

    removers = [router.intercept(partial(note, router.layer)) for router in routers]
    removers += [module.register_forward_pre_hook(look).remove for module in model.modules()]
    try:
        ids = torch.arange(_PROBE_TOKENS)[None] % model.get_input_embeddings().num_embeddings
        model.base_model(input_ids=ids.to(model.get_input_embeddings().weight.device), use_cache=False)
    finally:
        for remove in removers:
            remove()
    return calls


def _is_choice(value: object, routing: Routing) -> bool:
    if not isinstance(value, Tensor) or value.shape != routing.experts.shape or value.is_floating_point():
        return False
    return torch.equal(value.sort(-1).values, routing.experts.to(value.dtype).sort(-1).values)


def _error(experts: Experts, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> float:
    """Relative distance of the module's output from the weighted sum of its experts' own outputs."""
    every_ETD = experts.every(hidden_TD).float()
    chosen_TKD = experts.chosen(hidden_TD, experts_TK).float()
    row_T1 = torch.arange(len(hidden_TD), device=hidden_TD.device)[:, None]
    whole_TD = experts.module.forward(hidden_TD, experts_TK, weights_TK).reshape(len(hidden_TD), -1).float()
    scale = whole_TD.norm()
    sums = [(weights_TK.float()[..., None] * out).sum(1) for out in (every_ETD[experts_TK, row_T1], chosen_TKD)]
    return max(float((out - whole_TD).norm() / scale) for out in sums)
