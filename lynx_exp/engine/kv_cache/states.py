"""States of linear attention and of convolutions in slots: all that such a layer keeps of a row, however long it is.

S slots, R rows in use (the first R slots), n rows of a prefill.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin, LinearAttentionLayer

from lynx_exp.engine.kv_cache.cursor import Cursor

Place = tuple[int, str, int]
"""Layer, conv or recurrent, number of the state in the layer."""
States = dict[Place, Tensor]
"""`[n, ...]` or `[S, ...]` each."""


def states_of(cache: DynamicCache) -> States:
    """What the cache's layers hold after a prefill."""
    found: States = {}
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            for kind, held in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states)):
                found |= {(number, kind, at): state for at, state in held.items() if state is not None}
    return found


class StateLayer(LinearAttentionLayer):
    """A layer's states in slots, as transformers' modules use a cache: those of the rows in use, updated in place.

    Rows that are dead are updated, too; who enters their slot brings states of his own.
    """

    def __init__(self, states: States, layer: int, cursor: Cursor) -> None:
        self._held = {kind: {at: s for (n, k, at), s in states.items() if (n, k) == (layer, kind)} for kind in _KINDS}
        self._cursor = cursor
        self.number_of_states = max(len(held) for held in self._held.values())
        self.has_previous_state = dict.fromkeys(range(self.number_of_states), True)
        self.record_past = False

    def _rows(self, kind: str) -> dict[int, Tensor]:
        rows = self._cursor.rows.shape[0]
        return {at: state[:rows] for at, state in self._held[kind].items()}

    @property
    def conv_states(self) -> dict[int, Tensor]:
        """`[R, ...]` each."""
        return self._rows("conv")

    @property
    def recurrent_states(self) -> dict[int, Tensor]:
        """`[R, ...]` each."""
        return self._rows("recurrent")

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: object
    ) -> Tensor:
        held = self.conv_states[state_idx]
        whole = torch.cat([held, conv_states], -1)
        held.copy_(whole[..., -held.shape[-1] :])
        return whole

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: object) -> Tensor:
        return self.recurrent_states[state_idx].copy_(recurrent_states)


_KINDS = ("conv", "recurrent")
