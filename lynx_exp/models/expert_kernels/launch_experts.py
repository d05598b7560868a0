"""Launches of the kernels on one layer's experts.

Every shape and grid follows from the shapes of the arguments, and nothing waits for the device: a CUDA graph can hold
it. What lies between the launches is taken from torch's allocator, which hands every layer (and, inside a captured
graph, every layer of that graph) the same memory, and other streams another.

T token rows, K slots a row, S = T * K, E experts, D hidden size, I inner size.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from triton import JITFunction, cdiv, next_power_of_2

from lynx_exp.models.expert_kernels.gates import Form
from lynx_exp.models.expert_kernels.matmul_kernels import down_kernel, list_kernel, sum_kernel, up_kernel
from lynx_exp.models.expert_kernels.tile_sizes import MOST_SHARED, Tiles, tiles

_LIST_BLOCK = 4096
"""Slots that a program lists at a time."""
_SUM_BLOCK = 1024

INTERPRETED = not isinstance(up_kernel, JITFunction)
"""Whether Triton's interpreter runs the kernels (`TRITON_INTERPRET=1` before triton was imported), on a CPU too."""


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a block may have."""
    if device.type != "cuda":
        return MOST_SHARED
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]  # it is


def tiles_of(rows: int, top_k: int, experts: int, hidden: int, inner: int, like: Tensor, gated: bool) -> Tiles:
    """Of these shapes, in the type and on the device of `like`."""
    return tiles(
        rows * top_k / experts,
        hidden,
        inner,
        itemsize=like.element_size(),
        gated=gated,
        shared=shared_memory(like.device),
    )


def run_experts(
    hidden_TD: Tensor,
    experts_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    form: Form,
    transposed: bool,
) -> Tensor:
    """`[T, D]`: the weighted sum of each token's experts. `up`, `down`: `[E, out, in]`, or `[E, in, out]` if
    `transposed`."""
    (T, D), K, E = hidden_TD.shape, experts_TK.shape[1], up.shape[0]
    S, I = T * K, down.shape[1 if transposed else 2]  # noqa: E741
    shapes = tiles_of(T, K, E, D, I, hidden_TD, form.gated > 0)
    hidden_TD, experts_S, weights_S = hidden_TD.contiguous(), experts_TK.reshape(-1), weights_TK.reshape(-1)
    wide = INTERPRETED and hidden_TD.dtype == torch.bfloat16
    lists = torch.empty(2 * E + S, dtype=torch.int32, device=hidden_TD.device)
    inner_SI, made_SD = hidden_TD.new_empty(S, I), hidden_TD.new_empty(S, D)
    result_TD = torch.empty_like(hidden_TD)
    block = min(_LIST_BLOCK, next_power_of_2(S))
    with torch.cuda.device_of(hidden_TD):
        list_kernel[(E,)](experts_S, weights_S, lists, S, E=E, BLOCK=block, num_warps=4)
        up_kernel[(cdiv(I, shapes.up.columns), E)](
            hidden_TD,
            up,
            lists if up_bias is None else up_bias,
            inner_SI,
            lists,
            *_strides(up, transposed),
            E=E,
            K=K,
            D=D,
            I=I,
            TRANSPOSED=transposed,
            BIASED=up_bias is not None,
            GATED=form.gated,
            ACT=form.act,
            ALPHA=form.alpha,
            CLAMP=form.clamp,
            LIMIT=form.limit,
            SHIFT=form.shift,
            BM=shapes.up.rows,
            BN=shapes.up.columns,
            BK=shapes.up.depth,
            WIDE=wide,
            num_warps=shapes.up.warps,
            num_stages=shapes.up.stages,
        )
        down_kernel[(cdiv(D, shapes.down.columns), E)](
            inner_SI,
            down,
            lists if down_bias is None else down_bias,
            weights_S,
            made_SD,
            lists,
            *_strides(down, transposed),
            E=E,
            D=D,
            I=I,
            TRANSPOSED=transposed,
            BIASED=down_bias is not None,
            BM=shapes.down.rows,
            BN=shapes.down.columns,
            BK=shapes.down.depth,
            WIDE=wide,
            num_warps=shapes.down.warps,
            num_stages=shapes.down.stages,
        )
        columns = min(_SUM_BLOCK, next_power_of_2(D))
        sum_kernel[(T, cdiv(D, columns))](
            made_SD, experts_S, weights_S, result_TD, E=E, K=K, D=D, BN=columns, num_warps=4
        )
    return result_TD


def _strides(weights: Tensor, transposed: bool) -> tuple[int, int, int]:
    """(from expert to expert, from output to output, from input to input)."""
    of_expert, first, second = weights.stride()
    return (of_expert, second, first) if transposed else (of_expert, first, second)


@torch.library.custom_op("lynx_exp::few_rows", mutates_args=())
def _op(
    hidden: Tensor,
    experts: Tensor,
    weights: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    form: list[float],
    transposed: bool,
) -> Tensor:
    gated, act, alpha, clamp, limit, shift = form
    whole = Form(int(gated), int(act), alpha, int(clamp), limit, shift)
    return run_experts(hidden, experts, weights, up, up_bias, down, down_bias, whole, transposed)


@_op.register_fake
def _(hidden: Tensor, *_rest: object) -> Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


def run_compiled(
    hidden_TD: Tensor,
    experts_TK: Tensor,
    weights_TK: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    form: Form,
    transposed: bool,
) -> Tensor:
    """`run_experts` as one opaque operation inside what torch.compile makes."""
    values = [float(value) for value in form]
    return _op(hidden_TD, experts_TK, weights_TK, up, up_bias, down, down_bias, values, transposed)
