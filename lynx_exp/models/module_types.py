"""What is used of transformers' experts modules, as a type: their classes are made for each family and share none.

T token rows, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn


class Experts(Protocol):
    """The experts of a layer, whose way of computing transformers lets one choose. Weights of the first product stand
    in `gate_up_proj` or `up_proj`, biases under the same names with `_bias`: those that it has."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    """Whether weights are `[E, in, out]`, not `[E, out, in]`."""
    down_proj: Tensor
    down_proj_bias: Tensor
    """If `has_bias`."""
    _lynx_few_rows: object
    """What `few_rows` knows of the module, once it has run."""

    def act_fn(self, values: Tensor, /) -> Tensor: ...

    def _apply_gate(self, values: Tensor, /) -> Tensor: ...

    def post_expert_norm(self, values: Tensor, /) -> Tensor: ...

    def named_parameters(self, *, recurse: bool = ...) -> Iterator[tuple[str, nn.Parameter]]: ...

    def named_buffers(self, *, recurse: bool = ...) -> Iterator[tuple[str, Tensor]]: ...
