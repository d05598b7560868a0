"""Key-value slots: one physical row each, in which column c holds position c. Rows start and end at any time.

S slots, R rows in use (the first R slots), H key-value heads, C capacity in positions, D head size, n rows of a
prefill, N positions of its longest prompt, P positions of the prefix that all its prompts share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.masks import has_masks
from lynx_exp.engine.kv_cache.seats import to_device
from lynx_exp.engine.kv_cache.states import StateLayer, States
from lynx_exp.engine.requests.argmax import most_likely

_DUMMY: tuple[type, ...] = (cache_utils.DummyLayer,) if hasattr(cache_utils, "DummyLayer") else ()
"""Layers without a cache; before transformers 5.22 they were `LinearAttentionLayer`s that nothing fills."""

WIDTH = 32
"""Attention reads a multiple of this many columns: on a CPU a row's bits depend on the number modulo 8 or 16."""


def round_up(positions: int) -> int:
    return -(-positions // WIDTH) * WIDTH


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """Prompts that have gone through the model, right-padded."""

    keys: list[Tensor]
    """A layer with attention: `[n, H, N, D]`, without the prefix."""
    values: list[Tensor]
    prefix: tuple[list[Tensor], list[Tensor]] | None
    """A layer: keys and values `[1, H, P, D]`."""
    lengths: list[int]
    """Positions of each prompt, prefix included."""
    logits: Tensor
    """`[n, V]` of the token after each prompt."""
    states: States = field(default_factory=dict)
    """Of layers that keep states, after each prompt."""

    @cached_property
    def first_tokens(self) -> list[int]:
        """The most likely token after each prompt."""
        return most_likely(self.logits).tolist()

    @property
    def prefix_length(self) -> int:
        return self.prefix[0][0].shape[2] if self.prefix else 0

    def row_bytes(self, capacity: int) -> int:
        """Of one slot: keys and values of so many positions, and states."""
        position = sum(t.shape[1] * t.shape[3] * t.element_size() for t in (*self.keys, *self.values))
        return capacity * position + sum(state[0].nbytes for state in self.states.values())

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.keys, *self.values, *self.states.values(), self.logits))


class Slots:
    """Keys and values, and states, of S rows."""

    def __init__(self, like: Prefilled, slots: int, capacity: int, held: int | None = None) -> None:
        """`held`: positions that there is room for at first, C at most (None); `hold` makes more."""
        self.capacity, self._device = capacity, like.logits.device
        self.held = capacity if held is None else min(held, capacity)
        self.keys = [k.new_zeros(slots, k.shape[1], self.held, k.shape[3]) for k in like.keys]
        self.values = [v.new_zeros(slots, v.shape[1], self.held, v.shape[3]) for v in like.values]
        self.states = {place: state.new_zeros(slots, *state.shape[1:]) for place, state in like.states.items()}

    def hold(self, positions: int) -> None:
        """Room for so many positions of every row, in blocks of at least half of what is held; what is there stays. One
        buffer after the other, so that two are never held of more than one."""
        if positions <= self.held:
            return
        assert positions <= self.capacity, "no request is longer"
        held, self.held = self.held, min(self.capacity, round_up(max(positions, self.held + self.held // 2)))
        for buffers in (self.keys, self.values):
            for at, buffer in enumerate(buffers):
                buffers[at] = buffer.new_zeros(*buffer.shape[:2], self.held, buffer.shape[3])
                buffers[at][:, :, :held] = buffer

    def load(self, slots: list[int], source: Prefilled, rows: list[int]) -> None:
        """Copy rows of a prefill, whose positions must be held, into slots; columns beyond are padding for longer
        prompts."""
        to, of = (to_device(np.array(each, np.int64), self._device) for each in (slots, rows))
        start = source.prefix_length
        for into, made in ((self.keys, source.keys), (self.values, source.values)):
            for target, layer in zip(into, made, strict=True):
                to, of = to.to(layer.device), of.to(layer.device)  # layers may be on several devices
                held = target[:, :, start : start + layer.shape[2]]
                held[to] = layer[of, :, : held.shape[2]]
        for place, state in self.states.items():
            state[to.to(state.device)] = source.states[place][of.to(state.device)]
        if source.prefix is not None:
            for into, made in zip((self.keys, self.values), source.prefix, strict=True):
                for target, layer in zip(into, made, strict=True):
                    target[to.to(layer.device), :, :start] = layer

    def move(self, sources: list[int], targets: list[int], width: int) -> None:
        """Copy the first `width` positions of slots, and their states, to other slots."""
        of, to = (to_device(np.array(each, np.int64), self._device) for each in (sources, targets))
        for buffer in (*self.keys, *self.values):
            of, to = of.to(buffer.device), to.to(buffer.device)
            buffer[to, :, :width] = buffer[of, :, :width]
        for state in self.states.values():
            state[to.to(state.device)] = state[of.to(state.device)]


class SlotLayer(DynamicLayer):
    """A layer of slots as transformers' attention modules use a cache: written at the cursor, read up to its width."""

    def __init__(self, slots: Slots, layer: int, cursor: Cursor) -> None:
        super().__init__()
        self._slots, self._layer, self.cursor = slots, layer, cursor
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        cursor = self.cursor
        rows = cursor.rows.shape[0]
        where = cursor.rows.to(key_states.device), slice(None), cursor.position.to(key_states.device)
        keys, values = self._slots.keys[self._layer], self._slots.values[self._layer]  # others once more is held
        keys[where] = key_states[:, :, 0]
        values[where] = value_states[:, :, 0]
        return keys[:rows, :, : cursor.width], values[:rows, :, : cursor.width]

    def get_seq_length(self) -> int:
        return self.cursor.width - 1


def slot_cache(config: PretrainedConfig, slots: Slots, cursor: Cursor) -> DynamicCache:
    """A cache whose layers read and write the slots."""
    layers: list[CacheLayerMixin] = []
    cache, attention = DynamicCache(config=config), 0
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionLayer):
            layers.append(StateLayer(slots.states, number, cursor))
        elif isinstance(layer, _DUMMY):
            layers.append(layer)
        else:
            layers.append(SlotLayer(slots, attention, cursor))
            attention += 1
    cache.layers = layers
    return cache


def prompt_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for prompts, whose windows and chunks keep all keys and values: their masks hide what is far."""
    cache = DynamicCache(config=config)
    cache.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
    return cache


def has_slots(config: PretrainedConfig) -> bool:
    """Whether a row's cache is what slots hold: keys and values of all positions, masked as we say, and states."""
    layers = DynamicCache(config=config).layers
    return (
        {type(layer) for layer in layers} <= {DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, *_DUMMY}
        and any(isinstance(layer, DynamicLayer) for layer in layers)
        and has_masks(config)
        and config._attn_implementation in ("sdpa", "eager")
    )


def keeps_states(config: PretrainedConfig) -> bool:
    """Whether some layers keep states, into which padding behind a prompt would run."""
    return any(isinstance(layer, LinearAttentionLayer) for layer in DynamicCache(config=config).layers)


def attends_fully(config: PretrainedConfig) -> bool:
    """Whether every layer attends to all positions, by torch's scaled dot products."""
    layers = DynamicCache(config=config).layers
    return (
        bool(layers) and all(type(layer) is DynamicLayer for layer in layers) and config._attn_implementation == "sdpa"
    )
