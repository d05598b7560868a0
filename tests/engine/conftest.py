"""A tiny random Mixtral whose routers are wide enough that tokens differ in what they choose."""

from __future__ import annotations

from random import Random

import pytest
import torch

from lynx_exp import Engine
from lynx_exp.routing import ModelShape

VOCAB = 300
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "sliding_window": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@pytest.fixture(scope="session")
def engine() -> Engine:
    engine = Engine.from_config("mixtral", CONFIG, seed=0)
    generator = torch.Generator().manual_seed(1)
    for router in engine.routers:
        router.module.weight.data.normal_(0, 0.5, generator=generator)
    return engine


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    rng = Random(0)
    return [[rng.randrange(3, VOCAB) for _ in range(rng.randint(3, 20))] for _ in range(32)]


def shape_of(engine: Engine) -> ModelShape:
    return ModelShape(num_experts=engine.num_experts, top_k=engine.top_k, num_layers=engine.num_layers)
