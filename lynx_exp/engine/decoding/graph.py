"""A step that is recorded once and replayed over static buffers: as a CUDA graph, launched at once instead of some
hundred kernels from Python; or, anywhere, by running the same function again over the same buffers.

What changes between steps - tokens, positions, random keys, who is live - lies in buffers that keep their place;
everything else is fixed when a step is recorded. A step may be run any number of times: it writes what it makes, and
never what it reads, so that recording one leaves no trace. Policies on a GPU never wait for the host, so that their
selection is part of the graph.

R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lynx_exp.routing.backends.triton.kernels.fallback import reason_of

Made = tuple[Tensor, ...]
"""What a step makes; each replay writes it in the same place."""
Step = Callable[[], Made]
Capture = Callable[[Step], Step]
"""From a step on fixed buffers to what replays it."""

_MOST = 0.75
"""Share of what a replay makes that must be what the step made."""


class CannotRecord(RuntimeError):
    """A step cannot be recorded here; whoever wanted it launches steps from Python."""


def recorded(capture: Capture, step: Step) -> Step:
    """What replays `step`. CannotRecord, with the reason, if it cannot be captured; memory that runs out is told as it
    is."""
    try:
        return capture(step)
    except (torch.OutOfMemoryError, MemoryError, CannotRecord):
        raise
    except Exception as error:  # a capture fails in many ways
        raise CannotRecord(reason_of(error)) from error


def nearly_equal(one: Tensor, other: Tensor) -> bool:
    """Whether most of two tensors is the same: other kernels round otherwise, and a near tie then falls otherwise."""
    if not one.numel():
        return True
    allowed = 0.05 * other.abs().max() if one.is_floating_point() else 0
    same = (one - other).abs() <= allowed if one.dtype != torch.bool else one == other
    return bool(same.float().mean() >= _MOST)


def rerun(step: Step) -> Step:
    """Replay by running `step` again: what a graph does, without one."""
    made: list[Made] = []

    def replay() -> Made:
        fresh = step()
        if not made:
            made.append(tuple(tensor.clone() for tensor in fresh))
        for place, tensor in zip(made[0], fresh, strict=True):
            place.copy_(tensor)
        return made[0]

    return replay


class CudaGraphs:
    """Captures steps as CUDA graphs that share one pool of memory: what a replay makes holds until the next one. A
    first replay must make what the step made when it was launched, but for near ties; else CannotRecord."""

    def __init__(self) -> None:
        self._last: torch.cuda.CUDAGraph | None = None
        """Held, since a pool that no graph uses any more cannot be captured into."""

    def __call__(self, step: Step) -> Step:
        pool = None if self._last is None else self._last.pool()
        warm_ups = 3 if pool is None else 1  # kernels are compiled and workspaces taken in them
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(warm_ups):
                launched = step()
            expected = tuple(tensor.clone() for tensor in launched)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            made = step()
        graph.replay()
        if not all(map(nearly_equal, made, expected)):
            raise CannotRecord("a replay makes something else than the step does")
        self._last = graph

        def replay() -> Made:
            graph.replay()
            return made

        return replay


class Graphs:
    """The recorded steps of one lane under one policy, one for each width that attention reads."""

    def __init__(self, capture: Capture, rows: int, device: torch.device) -> None:
        self._capture = capture
        self._replays: dict[int, Step] = {}
        self.token_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.position_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.key_G = torch.zeros(1, dtype=torch.long, device=device)
        self.row_R = torch.zeros(rows, dtype=torch.long, device=device)
        """Numbers of the rows, for steps that do not always have the same ones; those who use it fill it."""

    def run(self, token_R: Tensor, position_R: Tensor, key: int, width: int, step: Callable[[], Tensor]) -> Tensor:
        """`[R, V]` logits of `step`, which reads this object's buffers. CannotRecord as `recorded`."""
        self.token_R.copy_(token_R)
        self.position_R.copy_(position_R)
        self.key_G.fill_(key)
        if width not in self._replays:
            try:
                self._replays[width] = recorded(self._capture, lambda: (step(),))
            except (torch.OutOfMemoryError, MemoryError) as error:  # launched from Python they may fit
                raise CannotRecord(reason_of(error)) from error
        return self._replays[width]()[0]
