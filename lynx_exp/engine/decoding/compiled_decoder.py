"""The direct decode step with one decoder layer compiled: once, as a whole, and called for each layer with its weights.

What depends on the step and not on the layer's weights - keys and values in their slots, and the block of experts, with
whatever policy hooks its router - stays out of the compiled code as two opaque operations. So the code is one graph
without a break, the same for all layers, policies, slots, widths and, from two rows on, numbers of rows.

R rows, H query heads, G key-value heads, D head size, M hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from time import perf_counter
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.decoder import position_table
from lynx_exp.engine.decoding.layer_types import DecoderLayer, DirectModel
from lynx_exp.engine.decoding.one_buffer import fuse_projections
from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.slots import Slots

_Layer = Callable[..., tuple[Tensor, Tensor]]


class Form(NamedTuple):
    """What all layers have in common."""

    size: int
    """D."""
    values: int
    """G."""
    eps: float
    normed: str
    """Queries and keys: `not`, `head` by head, or `whole`."""


class LayerCode:
    """A compiled layer of one model."""

    def __init__(self, form: Form, backend: str | Callable[..., object], say: Callable[[str], None]) -> None:
        """`backend`: torch.compile's; `say`: told before it compiles."""
        self._run: _Layer = torch.compile(_layer_of(form), fullgraph=True, backend=backend)
        self._say, self._ready = say, set[bool]()
        self.seconds = 0.0
        """What compiling has taken."""

    def __call__(self, hidden_RM: Tensor, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        many = hidden_RM.shape[0] > 1
        if many in self._ready:
            return self._run(hidden_RM, *given)
        self._say("compiling a decoder layer, for later runs too: up to half a minute")
        start = perf_counter()
        if many:  # one row is a case of its own to torch.compile, all other numbers are another
            for tensor in (hidden_RM, *given[:3]):
                torch._dynamo.mark_dynamic(tensor, 0)
        made = self._run(hidden_RM, *given)
        self._ready.add(many)
        self.seconds += perf_counter() - start
        return made


def _layer_of(form: Form) -> _Layer:
    def layer(
        hidden: Tensor,
        added: Tensor,
        cos: Tensor,
        sin: Tensor,
        which: Tensor,
        norm: Tensor,
        qkv: Tensor,
        qkv_bias: Tensor | None,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        out: Tensor,
        out_bias: Tensor | None,
        block_norm: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(what goes on besides the block of experts, what that block adds). `added`: by the layer before."""
        # the sum is taken here so that it is fused with the norm that reads it
        hidden = hidden + added
        every = linear(rms_norm(hidden, hidden.shape[-1:], norm, form.eps), qkv, qkv_bias)
        values = form.values * form.size
        # queries and keys lie side by side, so that norm and rotation are one operation for both
        both, value = every[:, :-values], every[:, -values:].unflatten(-1, (-1, form.size))
        if form.normed == "whole":
            assert q_norm is not None and k_norm is not None
            parts = both[:, : q_norm.shape[0]], both[:, q_norm.shape[0] :]
            both = torch.cat([_norm(parts[0], q_norm, form.eps), _norm(parts[1], k_norm, form.eps)], -1)
        both = both.unflatten(-1, (-1, form.size))
        if form.normed == "head":
            assert q_norm is not None and k_norm is not None
            parts = both[:, : -form.values], both[:, -form.values :]
            both = torch.cat([_norm(parts[0], q_norm, form.eps), _norm(parts[1], k_norm, form.eps)], 1)
        both = both * cos + both.roll(form.size // 2, -1) * sin
        attended = _attend(both[:, : -form.values], both[:, -form.values :], value, which)
        hidden = hidden + linear(attended, out, out_bias)
        return hidden, _block(rms_norm(hidden, hidden.shape[-1:], block_norm, form.eps), which)

    return layer


def _norm(given: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(given, weight.shape, weight, eps)


class CompiledDecoder:
    """`DirectDecoder`, compiled."""

    def __init__(self, model: DirectModel, slots: Slots, cursor: Cursor, code: LayerCode) -> None:
        self._model, self.slots, self.cursor, self._code = model, slots, cursor, code
        body = model.model
        self._cos_CD, self._sin_CD = position_table(model, slots.capacity)
        number = next(_NUMBERS)
        _DECODERS[number] = self
        with torch.inference_mode(False):  # torch.compile tells tensors apart by the mode that they were made in
            which = [torch.tensor([number, at]) for at in range(len(body.layers))]
        self._weights = [(at, *_weights_of(layer)) for at, layer in zip(which, body.layers, strict=True)]

    def step(self, token_R: Tensor) -> Tensor:
        """`[R, V]` logits of the next tokens; rows and positions are the cursor's."""
        cursor, body = self.cursor, self._model.model
        self.mask = torch.zeros((), dtype=self._cos_CD.dtype, device=token_R.device).where(cursor.mask(), -torch.inf)
        cos, sin = self._cos_CD[cursor.position][:, None], self._sin_CD[cursor.position][:, None]
        hidden = body.embed_tokens(token_R)
        added = torch.zeros_like(hidden)
        for weights in self._weights:
            hidden, added = self._code(hidden, added, cos, sin, *weights)
        hidden = rms_norm(hidden + added, hidden.shape[-1:], body.norm.weight, body.norm.variance_epsilon)
        return self._model.lm_head(hidden)

    def layer(self, number: int) -> DecoderLayer:
        return self._model.model.layers[number]


_NUMBERS = count()
_DECODERS: WeakValueDictionary[int, CompiledDecoder] = WeakValueDictionary()


def _place(which: Tensor) -> tuple[CompiledDecoder, int]:
    """(decoder, layer) that an operation is called for; `which` lies on the host."""
    number, layer = which.tolist()
    return _DECODERS[number], layer


@torch.library.custom_op("lynx_exp::attend", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, which: Tensor) -> Tensor:
    """`[R, H * D]`, from `[R, H, D]` and twice `[R, G, D]`, which go into their slots."""
    decoder, layer = _place(which)
    cursor, rows = decoder.cursor, query.shape[0]
    keys, values = decoder.slots.keys[layer], decoder.slots.values[layer]
    keys[cursor.rows, :, cursor.position] = key
    values[cursor.rows, :, cursor.position] = value
    out = scaled_dot_product_attention(
        query[:, :, None],
        keys[:rows, :, : cursor.width],
        values[:rows, :, : cursor.width],
        attn_mask=decoder.mask,
        scale=decoder.layer(layer).self_attn.scaling,
        enable_gqa=query.shape[1] != value.shape[1],
    )
    return out.reshape(rows, -1).contiguous()


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, which: Tensor) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1] * query.shape[2])


@torch.library.custom_op("lynx_exp::block", mutates_args=())
def _block(hidden: Tensor, which: Tensor) -> Tensor:
    """`[R, M]`: what the layer's experts add."""
    decoder, layer = _place(which)
    return decoder.layer(layer).mlp(hidden[:, None])[:, 0].contiguous()


@_block.register_fake
def _(hidden: Tensor, which: Tensor) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


def form_of(model: PreTrainedModel) -> Form:
    """ValueError, with the reason, where its layers are not alike."""
    found: set[Form] = set()
    for layer in model.model.layers:
        attention = layer.self_attn
        norm = getattr(attention, "q_norm", None)
        size = attention.head_dim
        normed = "not" if norm is None else "head" if norm.weight.shape[0] == size else "whole"
        kinds = [layer.input_layernorm, layer.post_attention_layernorm]
        kinds += [] if norm is None else [attention.q_norm, attention.k_norm]
        eps = {kind.variance_epsilon for kind in kinds}
        found.update(Form(size, attention.v_proj.out_features // size, each, normed) for each in eps)
    if len(found) != 1:
        raise ValueError("its layers are not alike")
    return found.pop()


def _weights_of(layer: DecoderLayer) -> tuple[Tensor | None, ...]:
    """In the order in which a compiled layer takes them."""
    attention = layer.self_attn
    norms = [getattr(getattr(attention, f"{name}_norm", None), "weight", None) for name in "qk"]
    out = attention.o_proj
    first, last = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    return (first, *fuse_projections(attention), *norms, out.weight, out.bias, last)
