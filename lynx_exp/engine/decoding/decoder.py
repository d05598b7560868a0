"""One decode step of rows that stand in slots: through the model's own forward pass, or a shorter equal one.

Half of a small step of a transformers model goes into what surrounds the matrices. For the families below the same
operations are called directly: their structure is looked for, and the outcome proved against the model's own forward
pass at load. Routers and MoE blocks are always the model's own modules, so policies act there in both.

R rows, H heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.layer_types import Attention, DirectModel, Norm
from lynx_exp.engine.decoding.prompts import prefill
from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.masks import mask_maker
from lynx_exp.engine.kv_cache.slots import Prefilled, Slots, attends_fully, slot_cache

DIRECT = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
"""Model types whose decoder layer is a pre-norm attention and a pre-norm MoE with plain residuals."""


class Decoder(Protocol):
    """Feeds one token a row."""

    def step(self, token_R: Tensor) -> Tensor:
        """`[R, V]` logits of the next tokens; rows and positions are the cursor's."""
        ...


class PlainDecoder:
    """The model's own forward pass."""

    def __init__(self, model: PreTrainedModel, slots: Slots, cursor: Cursor) -> None:
        self._model, self._cursor = model, cursor
        self._cache = slot_cache(model.config, slots, cursor)
        self._mask = mask_maker(model.config.get_text_config(), model.dtype)

    def step(self, token_R: Tensor) -> Tensor:
        return self._model(
            input_ids=token_R[:, None],
            attention_mask=self._mask(self._cursor),
            position_ids=self._cursor.position[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]


class DirectDecoder:
    """The same operations without what surrounds them."""

    def __init__(self, model: DirectModel, slots: Slots, cursor: Cursor) -> None:
        self._model, self._slots, self._cursor = model, slots, cursor
        self._cos_CD, self._sin_CD = position_table(model, slots.capacity)
        self._joined = _joined_projections(model)

    def step(self, token_R: Tensor) -> Tensor:
        cursor, body = self._cursor, self._model.model
        mask = torch.zeros((), dtype=self._cos_CD.dtype, device=token_R.device).where(cursor.mask(), -torch.inf)
        cos, sin = self._cos_CD[cursor.position][:, None], self._sin_CD[cursor.position][:, None]
        hidden = body.embed_tokens(token_R)
        for number, layer in enumerate(body.layers):
            attended = self._attend(number, layer.self_attn, _norm(layer.input_layernorm, hidden), cos, sin, mask)
            hidden = hidden + attended
            hidden = hidden + layer.mlp(_norm(layer.post_attention_layernorm, hidden)[:, None])[:, 0]
        return self._model.lm_head(_norm(body.norm, hidden))

    def _attend(
        self, number: int, attention: Attention, given: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
    ) -> Tensor:
        cursor, rows, size = self._cursor, given.shape[0], attention.head_dim
        if self._joined is None:
            value = attention.v_proj(given).view(rows, -1, size)
            both = torch.cat([_heads(attention, "q", given), _heads(attention, "k", given)], 1)
        else:
            every = linear(given, self._joined[number]).view(rows, -1, size)
            of_values = attention.v_proj.out_features // size
            both, value = every[:, :-of_values], every[:, -of_values:]
        both = both * cos + both.roll(size // 2, -1) * sin
        query, key = both[:, : -value.shape[1]], both[:, -value.shape[1] :]
        keys, values = self._slots.keys[number], self._slots.values[number]
        keys[cursor.rows, :, cursor.position] = key
        values[cursor.rows, :, cursor.position] = value
        out = scaled_dot_product_attention(
            query[:, :, None],
            keys[:rows, :, : cursor.width],
            values[:rows, :, : cursor.width],
            attn_mask=mask,
            scale=attention.scaling,
            enable_gqa=query.shape[1] != value.shape[1],
        )
        return attention.o_proj(out.view(rows, -1))


def position_table(model: DirectModel, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, `[C, D]` each; the sines of the first half negative, so that rotating
    halves is a roll."""
    body = model.model
    device, dtype = body.embed_tokens.weight.device, body.embed_tokens.weight.dtype
    cos, sin = body.rotary_emb(torch.empty(0, dtype=dtype, device=device), torch.arange(positions, device=device)[None])
    half = cos.shape[-1] // 2
    return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)


_JOINED: WeakKeyDictionary[DirectModel, tuple[object, list[Tensor]]] = WeakKeyDictionary()
_JOINED_BYTES = 2**26


def _joined_projections(model: DirectModel) -> list[Tensor] | None:
    """A layer: the weights of query, key and value in one matrix, for one product instead of three, where these are
    plain and small, so that the copy costs little; None elsewhere. Made once, as long as the weights stay as they
    are."""
    attentions = [layer.self_attn for layer in model.model.layers]
    parts: list[nn.Linear] = [getattr(attention, f"{name}_proj") for attention in attentions for name in "qkv"]
    plain = all(type(part) is nn.Linear and part.bias is None for part in parts)
    if not plain or hasattr(attentions[0], "q_norm") or sum(part.weight.nbytes for part in parts) > _JOINED_BYTES:
        return None
    state = tuple((part.weight.data_ptr(), part.weight._version) for part in parts)
    if model not in _JOINED or _JOINED[model][0] != state:
        joined = [torch.cat([part.weight for part in parts[at : at + 3]]) for at in range(0, len(parts), 3)]
        _JOINED[model] = state, joined
    return _JOINED[model][1]


def _heads(attention: Attention, which: str, given: Tensor) -> Tensor:
    """`[R, H, D]`: queries or keys, normalised as the model does."""
    made: Tensor = getattr(attention, f"{which}_proj")(given)
    norm: Norm | None = getattr(attention, f"{which}_norm", None)
    if norm is not None and norm.weight.shape[0] == made.shape[-1]:
        made = _norm(norm, made)
    made = made.view(given.shape[0], -1, attention.head_dim)
    return _norm(norm, made) if norm is not None and norm.weight.shape[0] == attention.head_dim else made


def _norm(norm: Norm, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def choose_decoder(model: PreTrainedModel) -> type[PlainDecoder] | type[DirectDecoder]:
    """The direct one where it is known to apply and proves equal on this model; else the model's own."""
    config = model.config
    clipped = getattr(config, "clip_qkv", None) is not None
    spread = len(getattr(model, "hf_device_map", {}) or {}) > 1 or getattr(model, "_tp_size", None) is not None
    rotary = getattr(getattr(model, "model", None), "rotary_emb", None)
    growing = getattr(rotary, "rope_type", None) in ("dynamic", "longrope")  # a table that changes with its length
    if config.model_type not in DIRECT or clipped or spread or growing or not attends_fully(config):
        return PlainDecoder
    return DirectDecoder if _direct_applies(model) else PlainDecoder


_LENGTHS = (3, 17, 40)


def _trial(model: PreTrainedModel) -> tuple[list[tuple[int, ...]], Tensor]:
    """(three prompts, two tokens to feed after each `[2, 3]`)."""
    vocabulary = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(vocabulary, (n,), generator=draw).tolist()) for n in _LENGTHS]
    return prompts, torch.randint(vocabulary, (2, 3), generator=draw).to(model.get_input_embeddings().weight.device)


def _logits_after(
    kind: Callable[..., Decoder], model: PreTrainedModel, made: Prefilled, tokens: Tensor, times: int = 1
) -> Tensor:
    """`[3 * times, V]` fp32 logits after the tokens: of the three prompts, so many times."""
    rows, device = 3 * times, tokens.device
    slots = Slots(made, rows, 64)
    slots.load(list(range(rows)), made, [0, 1, 2] * times)
    cursor = Cursor(torch.arange(rows, device=device), torch.tensor(made.lengths * times, device=device), 64)
    decoder = kind(model, slots, cursor)
    for token_R in tokens:
        logits = decoder.step(token_R.repeat(times))
        cursor.position = cursor.position + 1
    return logits.float()


@torch.inference_mode()
def agree(model: PreTrainedModel, one: Callable[..., Decoder], other: Callable[..., Decoder]) -> bool:
    """Whether two steps of three rows at different positions give the same logits, up to rounding."""
    prompts, tokens = _trial(model)
    made = prefill(model, prompts)
    first, second = (_logits_after(kind, model, made, tokens) for kind in (one, other))
    spread = first.std().clamp_min(1e-6)
    allowed = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool(((first - second).abs().max() / spread) <= allowed)


@torch.inference_mode()
def correlate(model: PreTrainedModel, one: Callable[..., Decoder], other: Callable[..., Decoder]) -> bool:
    """Whether two steps of 48 rows give much the same logits, where rounding differs and a router's near ties may fall
    otherwise."""
    prompts, tokens = _trial(model)
    made = prefill(model, prompts)
    first, second = (_logits_after(kind, model, made, tokens, times=16) for kind in (one, other))
    return all(_close(a, b, model.dtype) for a, b in zip(first, second, strict=True))


def _close(one_V: Tensor, other_V: Tensor, dtype: torch.dtype) -> bool:
    least = 0.999 if dtype == torch.float32 else 0.97
    return bool(torch.corrcoef(torch.stack([one_V, other_V]))[0, 1] >= least)


def _direct_applies(model: PreTrainedModel) -> bool:
    try:
        return agree(model, PlainDecoder, DirectDecoder)
    except (AttributeError, TypeError, RuntimeError):
        return False


@torch.inference_mode()
def decodes_in_slots(model: PreTrainedModel) -> bool:
    """Whether rows in slots go on as a plain pass over each text alone does, up to rounding: for models whose masks and
    states are ours to keep. By correlation, since a router's near ties may fall otherwise."""
    prompts, tokens = _trial(model)
    try:
        ours = _logits_after(PlainDecoder, model, prefill(model, prompts), tokens)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        return False
    for row, prompt in enumerate(prompts):
        text = torch.tensor([[*prompt, *tokens[:, row].tolist()]], device=tokens.device)
        whole = model(input_ids=text, use_cache=False).logits[0, -1].float()
        if not _close(whole, ours[row].to(whole.device), model.dtype):
            return False
    return True
