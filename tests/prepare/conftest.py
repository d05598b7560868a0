"""Tiny random models, what their experts read on a few sequences, and what `Observed` makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lynx_exp.models import find_routers, random_model
from lynx_exp.prepare.layer_facts import LayerFacts
from lynx_exp.prepare.observe import Observed
from lynx_exp.prepare.single_experts import find_experts

TINY = {
    "vocab_size": 128,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
FAMILIES = {
    "mixtral": TINY | {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
    "olmoe": TINY | {"num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False},
}
"""One router that renormalises, one that does not."""
COPY, ORIGINAL = 3, 1
"""In the first layer, these two experts have the same weights."""
SEED = 7
LENGTHS = (33, 20)


@dataclass
class Observation:
    model: nn.Module
    facts: list[LayerFacts]
    hidden: list[np.ndarray]
    """What the experts of each layer read: `[T, D]`, padding left out."""

    def experts_of(self, layer: int) -> np.ndarray:
        """`[E, T, D]`: every expert's output on every row, in plain NumPy."""
        module = self.model.model.layers[layer].mlp.experts
        x = self.hidden[layer]
        outputs = []
        for up, down in zip(module.gate_up_proj.double().numpy(), module.down_proj.double().numpy(), strict=True):
            gate, value = np.split(x @ up.T, 2, axis=-1)
            outputs.append(gate / (1 + np.exp(-gate)) * value @ down.T)
        return np.stack(outputs)


def tiny(family: str, seed: int = 0) -> nn.Module:
    """With routers and experts wide enough that tokens differ, and two equal experts in the first layer."""
    model = random_model(family, FAMILIES[family], seed=seed, dtype=torch.float32, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_(0, 0.5, generator=generator)
            layer.mlp.experts.gate_up_proj.normal_(0, 0.5, generator=generator)
            layer.mlp.experts.down_proj.normal_(0, 0.5, generator=generator)
        first = model.model.layers[0].mlp.experts
        for matrix in (first.gate_up_proj, first.down_proj):
            matrix[COPY] = matrix[ORIGINAL]
    return model.requires_grad_(False)


def batches(count: int, rows: int = 4, width: int = 20) -> list[tuple[Tensor, Tensor]]:
    """Ids, some rows padded, and which are real."""
    generator = torch.Generator().manual_seed(11)
    found = []
    for _ in range(count):
        ids = torch.randint(3, 128, (rows, width), generator=generator)
        real = torch.arange(width) < torch.randint(5, width + 1, (rows, 1), generator=generator)
        found.append((ids.where(real, 0), real))
    return found


def observe(model: nn.Module, count: int) -> Observation:
    routers = find_routers(model)
    experts = find_experts(model, routers)
    facts = [LayerFacts(*pair) for pair in zip(routers, experts, strict=True)]
    read: dict[int, list[np.ndarray]] = {layer: [] for layer in range(len(facts))}
    given = batches(count)
    for number, module in enumerate(model.model.layers):

        def keep(_module: nn.Module, args: tuple, number: int = number) -> None:
            if len(read[number]) < count:
                real = given[len(read[number])][1].flatten()
                read[number].append(args[0].reshape(len(real), -1)[real].double().numpy())

        module.mlp.experts.register_forward_pre_hook(keep)
    observed = Observed(model, routers, experts, facts)
    observed.read(given, lambda: None)
    observed.read_noise(LENGTHS, SEED, lambda: None)
    return Observation(model=model, facts=facts, hidden=[np.concatenate(read[layer]) for layer in read])


@pytest.fixture(scope="session", params=FAMILIES)
def seen(request: pytest.FixtureRequest) -> Observation:
    """About fifty tokens: one chunk."""
    return observe(tiny(request.param), 1)
