"""What a CUDA graph does, on a CPU: the operations of a step are taken down once, with the very tensors that they read
and wrote, and done again at each replay. Python runs no more: whatever it held when the step was recorded is fixed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lynx_exp.engine.decoding.graph import Made, Step
from lynx_exp.routing import StepContext, dispatch
from lynx_exp.routing.backends.numba import native
from lynx_exp.routing.ops.lanes import lane_size

WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "bincount", "masked_select", "unique2"}
"""Operations for which the host waits, or whose result has a size of its own."""


class Waited(RuntimeError):
    """A step waits for the device."""


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in WAITS:
            raise Waited(f"{func} in a step that is recorded")
        out = func(*args, **kwargs)
        self.done.append((func, args, kwargs, [t for t in tree_leaves(out) if isinstance(t, Tensor)]))
        return out


class Tape:
    """A capture. `captured` counts."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, step: Step) -> Step:
        step()  # to warm up, as before a real capture
        recorder = _Recorder()
        with recorder:
            made = step()
        self.captured += 1

        def replay() -> Made:
            for func, args, kwargs, outs in recorder.done:
                fresh = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                inputs = {place(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
                for out, new in zip(outs, fresh, strict=True):
                    if place(out) not in inputs:  # neither a view nor changed in place
                        out.copy_(new)
            return made

        return replay


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def as_on_a_device() -> Iterator[None]:
    """Policies run their torch definitions, and never ask whether anything is to be done."""

    def acting(step: StepContext, min_batch: int) -> tuple[StepContext, bool]:
        if min_batch == 1:
            return step, True
        return replace(step, live=step.live & (lane_size(step) >= min_batch)[step.lane], shared={}), True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "AVAILABLE", False)
        patch.setattr(dispatch, "acting_step", acting)
        yield
