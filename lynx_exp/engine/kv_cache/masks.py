"""Which columns of its slot each row attends to, layer by layer: all before it, those of a window, or of a chunk.

Slots keep all keys and values, of windows and chunks too: what such a layer's own cache would have dropped, the mask
hides.

R rows in use, W columns that attention reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from lynx_exp.engine.kv_cache.cursor import Cursor

Mask: TypeAlias = "Tensor | dict[str, Tensor | None]"
"""`[R, 1, 1, W]`, or one for each type of layer (None: it has no attention), as transformers' models take it."""
_CHUNKED = "chunked_attention"


def _kinds(config: PretrainedConfig) -> Iterator[tuple[str, CacheLayerMixin]]:
    """(type, cache) of each layer. Where a configuration names no types, all its layers are of one."""
    types = getattr(config, "layer_types", None)
    only = _CHUNKED if getattr(config, "sliding_window", None) is None else "sliding_attention"
    for number, layer in enumerate(DynamicCache(config=config).layers):
        yield only if types is None else types[number], layer


def has_masks(config: PretrainedConfig) -> bool:
    """Whether layers of one type see equally far."""
    reach: dict[str, int | None] = {}
    layers = ((kind, getattr(layer, "sliding_window", None)) for kind, layer in _kinds(config))
    return all(reach.setdefault(kind, far) == far for kind, far in layers)


def mask_maker(config: PretrainedConfig, dtype: torch.dtype) -> Callable[[Cursor], Mask]:
    """From a cursor to what a model of this configuration is given as attention mask: truth values or, where it
    computes attention in the plain way, what is added to scores."""
    layers = dict(_kinds(config))
    additive = config._attn_implementation == "eager"

    def mask_of_kind(kind: str, columns: Tensor, position_R1: Tensor) -> Tensor | None:
        layer = layers[kind]
        if not isinstance(layer, DynamicLayer):
            return None
        seen = columns <= position_R1
        if isinstance(layer, DynamicSlidingWindowLayer):
            far = int(layer.sliding_window)
            if kind == _CHUNKED:
                seen &= columns // far == position_R1 // far
            else:
                seen &= columns > position_R1 - far
        if additive:
            none = torch.zeros((), dtype=dtype, device=seen.device)
            return none.where(seen, torch.finfo(dtype).min)[:, None, None]
        return seen[:, None, None]

    def make(cursor: Cursor) -> Mask:
        columns = torch.arange(cursor.width, device=cursor.position.device)
        made = {kind: mask_of_kind(kind, columns, cursor.position[:, None]) for kind in layers}
        only = next(iter(made.values()))
        return only if len(made) == 1 and only is not None else made

    return make
