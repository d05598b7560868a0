"""The bytes model of a model that has no weights: one on the meta device, which is a shape and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lynx_exp.engine.kv_cache.kv import new_cache
from lynx_exp.engine.kv_cache.states import states_of
from lynx_exp.engine.timing.step_bytes import StepBytes, bytes_of, routed_weights
from lynx_exp.models.routers import router_classes


def weightless_bytes(model: PreTrainedModel, num_experts: int) -> StepBytes | None:
    """Of a decode step, in the model's dtype; None where it cannot be told. Its experts are taken out: the model is of
    no use afterwards."""
    experts = [routed_weights(parent, num_experts) for parent in _parents(model)]
    if not experts or not all(experts):
        return None
    kept = _kept(model)
    if kept is None:
        return None
    return bytes_of(model, experts, num_experts=num_experts, row=kept[0], position=kept[1])


def _parents(model: nn.Module) -> list[nn.Module]:
    """Of each router, the module that holds it and its experts."""
    classes = router_classes(model)
    names = [name for name, module in model.named_modules() if isinstance(module, classes)]
    return [model.get_submodule(name.rpartition(".")[0]) for name in names]


class _Through(nn.Module):
    """In place of experts, which would ask which token goes where; what is kept of a token does not hang on them."""

    def forward(self, hidden: Tensor, *others: object, **more: object) -> Tensor:
        return hidden


@torch.inference_mode()
def _kept(model: PreTrainedModel) -> tuple[int, int] | None:
    """(bytes of a row's states, bytes of one position's keys and values), by sending one token through."""
    held = [
        (parent, parent.experts)
        for parent in _parents(model)
        if isinstance(getattr(parent, "experts", None), nn.Module)
    ]
    cache, _ = new_cache(model.config.get_text_config(), 1)
    try:
        for parent, _experts in held:
            parent.experts = _Through()
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    except Exception:  # a module that looks at its values
        return None
    finally:
        for parent, experts in held:
            parent.experts = experts
    tensors = [
        tensor
        for layer in cache.layers
        if isinstance(layer, DynamicLayer) and layer.is_initialized
        for tensor in (layer.keys, layer.values)
    ]
    states = sum(state[0].nbytes for state in states_of(cache).values())
    return states, sum(tensor.shape[1] * tensor.shape[3] * tensor.element_size() for tensor in tensors)
