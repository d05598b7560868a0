"""Random models of true layer shapes, large enough that a decode step reads weights from memory, not from a cache."""

from __future__ import annotations

from typing import Any

from lynx_exp import Engine

VOCABULARY = 8192
"""Smaller than the real ones: the table of tokens is not what is studied."""

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_30b_a3b": (
        "qwen3_moe",
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
        },
    ),
    "mixtral_8x7b": (
        "mixtral",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "sliding_window": None,
        },
    ),
}
"""Name -> model type and configuration, from the models' own config.json."""


def large_engine(shape: str, layers: int, **options: Any) -> Engine:
    """`layers` decoder layers of that shape, weights drawn at random."""
    model_type, config = SHAPES[shape]
    config = config | {"num_hidden_layers": layers, "vocab_size": VOCABULARY, "max_position_embeddings": 4096}
    return Engine.from_config(model_type, config, **options)


def gib(engine: Engine) -> float:
    """Of all weights."""
    return float(sum(p.numel() * p.element_size() for p in engine.model.parameters()) / 2**30)
