"""A tiny random model of any family: the default configuration with every size shrunk, its routers made to matter.

E experts.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lynx_exp.models.family_sizes import sized_fields
from lynx_exp.models.routers import router_classes

EXPERTS, TOP_K = 8, 3

_SIZES = {
    "experts": EXPERTS,
    "top_k": TOP_K,
    "layers": 2,
    "hidden": 64,
    "expert_hidden": 32,
    "heads": 4,
    "kv_heads": 2,
    "vocab": 128,
    "positions": 256,
}
"""Experts are 8 and nothing else is."""

_FIXED = {r"sliding_window(_size)?|attention_chunk_size": 8}
"""Short, so that a test's prompts reach beyond."""


def tiny_config(model_type: str, **changes: object) -> PreTrainedConfig:
    """A configuration of `model_type` with 8 experts and top-3 in every layer that can have them, other fields by
    `changes`."""
    return AutoConfig.for_model(model_type, **sized_fields(model_type, _SIZES, _FIXED) | changes)


def tiny_model(model_type: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of `tiny_config`, whose routers choose clearly and by biases that matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
    _randomize_routers(model)
    return model


@torch.no_grad()
def _randomize_routers(model: nn.Module) -> None:
    """Widen the routers' weights, so that tokens differ, and set what holds one number for each expert to random
    numbers."""
    classes = router_classes(model)
    for name, module in model.named_modules():
        if isinstance(module, classes):
            parent = model.get_submodule(name.rpartition(".")[0])
            for part, tensor in [*parent.named_parameters(), *parent.named_buffers()]:
                if tensor.dim() == 2 and tensor.shape[0] == EXPERTS:
                    tensor.normal_(std=0.5)
                elif tensor.numel() == EXPERTS and "scale" in part:
                    tensor.uniform_(0.5, 1.5)
                elif tensor.numel() == EXPERTS:
                    tensor.uniform_(-0.25, 0.25)
