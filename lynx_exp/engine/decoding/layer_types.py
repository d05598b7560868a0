"""What the direct decoders use of transformers' models, as types: the families that they serve (`decoder.DIRECT`) have
it all, and share no class.

R rows, V vocabulary, M hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn


class Norm(Protocol):
    weight: Tensor
    variance_epsilon: float


class Attention(Protocol):
    """May have norms of queries and keys, `q_norm` and `k_norm`."""

    head_dim: int
    scaling: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear


class DecoderLayer(Protocol):
    self_attn: Attention
    input_layernorm: Norm
    post_attention_layernorm: Norm
    mlp: Callable[[Tensor], Tensor]
    """The block of experts."""


class Body(Protocol):
    embed_tokens: nn.Embedding
    layers: Sequence[DecoderLayer]
    norm: Norm
    rotary_emb: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(like what, positions) -> cosines and sines."""


class DirectModel(Protocol):
    model: Body
    lm_head: Callable[[Tensor], Tensor]
    """`[R, M]` -> `[R, V]`."""
