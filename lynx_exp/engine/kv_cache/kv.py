"""Preallocated key-value caches for transformers models: appended in place, rewound for free, rows dropped as they
finish.

R rows of the physical batch, H key-value heads, C capacity in positions, D head size.
"""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


class SlotLayer(DynamicLayer):
    """One layer's keys and values in buffers `[R, H, C, D]`; what attention sees is a view of the filled part, never
    a copy."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, heads = key_states.shape[:2]
        self.key_buffer = key_states.new_zeros(rows, heads, self.capacity, key_states.shape[-1])
        self.value_buffer = value_states.new_zeros(rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        self.key_buffer, self.value_buffer = self.key_buffer[indices], self.value_buffer[indices]


def new_cache(config: PretrainedConfig, capacity: int) -> tuple[DynamicCache, bool]:
    """(cache, whether it is made of slots). Models with other than full attention keep transformers' own layers."""
    cache = DynamicCache(config=config)
    slots = bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
    if slots:
        cache.layers = [SlotLayer(capacity) for _ in cache.layers]
    return cache, slots


def rewind(cache: DynamicCache, length: int) -> None:
    """Forget every position from `length` on. Slots only."""
    for layer in cache.layers:
        layer.length = length


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep only `rows` of the physical batch."""
    for layer in cache.layers:
        layer.batch_select_indices(rows)
