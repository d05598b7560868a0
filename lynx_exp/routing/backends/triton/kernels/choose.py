"""Which code selects experts: the torch definitions (compiled loops on a CPU), or the fused Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

from torch import Tensor

Kernel = Literal["auto", "torch", "triton"]

MOST_ROWS, MOST_EXPERTS = 1024, 1024
"""Beyond these torch runs: more rows are prefill, where torch's own kernels are well fed."""

_kernel: Kernel = "auto"


def set_kernel(name: Kernel) -> None:
    """`auto`: Triton for tensors on CUDA where it is installed. `torch`: never. `triton`: always, which on a CPU works
    only under Triton's interpreter (`TRITON_INTERPRET=1`, set before anything imports triton).

    Raises ValueError for another name, and for `triton` where it is not installed.
    """
    global _kernel
    if name not in get_args(Kernel):
        raise ValueError(f"kernel={name}: must be one of {', '.join(get_args(Kernel))}")
    if name == "triton" and not _installed():
        raise ValueError("kernel=triton: triton is not installed (pip install triton)")
    _kernel = name


def current_kernel() -> Kernel:
    return _kernel


@contextmanager
def kernel(name: Kernel) -> Iterator[None]:
    """`set_kernel` for the length of a `with` block."""
    before = _kernel
    set_kernel(name)
    try:
        yield
    finally:
        set_kernel(before)


def chosen(tensor: Tensor) -> bool:
    """Whether the Triton kernels are to run on data that lies where `tensor` does."""
    if _kernel == "auto":
        return tensor.is_cuda and _installed()
    return _kernel == "triton"


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
