"""A decode step as a CUDA graph: launched once instead of some hundred kernels from Python.

What changes between steps - tokens, positions, the random key - lives in buffers that keep their place; everything else
(rows, lanes, the policy's branches) is fixed while a lane is measured. Policies on a GPU never wait for the host, so
their selection is part of the graph.

R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From a step on fixed buffers to what replays it."""

_WARM_UPS = 3
"""Runs before the capture: kernels are compiled and workspaces taken in them."""


def cuda_capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture `step`; the replay writes the same output tensor each time."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


class Graphs:
    """The captured steps of one lane under one policy, one for each width that attention reads."""

    def __init__(self, capture: Capture, rows: int, device: torch.device) -> None:
        self._capture = capture
        self._replays: dict[int, Callable[[], Tensor]] = {}
        self.token_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.position_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.key_G = torch.zeros(1, dtype=torch.long, device=device)
        self.row_R = torch.zeros(rows, dtype=torch.long, device=device)
        """Numbers of the rows, for steps that do not always have the same ones; those who use it fill it."""

    def run(self, token_R: Tensor, position_R: Tensor, key: int, width: int, step: Callable[[], Tensor]) -> Tensor:
        """`[R, V]` logits of `step`, which reads this object's buffers."""
        self.token_R.copy_(token_R)
        self.position_R.copy_(position_R)
        self.key_G.fill_(key)
        if width not in self._replays:
            self._replays[width] = self._capture(step)
        return self._replays[width]()
