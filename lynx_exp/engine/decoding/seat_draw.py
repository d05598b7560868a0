"""Tokens of rows that keep their seats, of which some sample and others take the most likely: as `sampling.Draw`, from
buffers, so that a recorded step draws for whoever is there.

S seats, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lynx_exp.engine.kv_cache.seats import to_device
from lynx_exp.engine.requests.argmax import most_likely
from lynx_exp.engine.requests.sampling import BLOCK, Filter, Sampling, gumbel, starts

_GREEDY = Sampling()
"""Stands for the settings of a greedy row, whose sampled token is not used."""


class SeatDraw:
    """`write` whoever enters, `send` before each step where the noise of each row starts, then call it with logits."""

    def __init__(self, seats: int, settings: Iterable[Sampling | None], device: torch.device) -> None:
        """`settings`: the sampling of each request that will take a seat; None for a greedy one."""
        self._device = device
        self._any = Filter.of([_GREEDY, *{sampling for sampling in settings if sampling is not None}])
        each = Filter.of([_GREEDY] * seats)
        self._temperature_S, self._top_k_S = each.temperature_n.to(device), each.top_k_n.to(device)
        self._tail_S = each.tail_n.to(device)
        self._samples_S = torch.zeros(seats, dtype=torch.bool, device=device)
        self._start_S = torch.zeros(seats, dtype=torch.long, device=device)

    @classmethod
    def of(cls, seats: int, settings: Sequence[Sampling | None], device: torch.device) -> SeatDraw | None:
        """The sampler of these requests; None if all of them are greedy."""
        return cls(seats, settings, device) if any(sampling is not None for sampling in settings) else None

    def write(self, samplings: Mapping[int, Sampling | None]) -> None:
        """By seat."""
        made = Filter.of([sampling or _GREEDY for sampling in samplings.values()])
        at = to_device(np.array([*samplings]), self._device)
        samples = torch.tensor([sampling is not None for sampling in samplings.values()])
        for buffer, new in (
            (self._temperature_S, made.temperature_n),
            (self._top_k_S, made.top_k_n),
            (self._tail_S, made.tail_n),
            (self._samples_S, samples),
        ):
            buffer.index_copy_(0, at, to_device(new.numpy(), self._device))

    def send(self, seats: Sequence[int], samplings: Sequence[Sampling], steps: Sequence[int]) -> None:
        """For those who sample, how many tokens they have."""
        noise = starts([sampling.seed for sampling in samplings], steps).numpy()
        self._start_S.index_copy_(0, to_device(np.array(seats), self._device), to_device(noise, self._device))

    def __call__(self, logits_SV: Tensor) -> Tensor:
        """`[S]` tokens."""
        kept = Filter(
            temperature_n=self._temperature_S,
            top_k_n=self._top_k_S,
            tail_n=self._tail_S,
            most=self._any.most,
            cut=self._any.cut,
        )
        seats, vocabulary = logits_SV.shape
        size = max(1, BLOCK // vocabulary)
        drawn = []
        for at in range(0, seats, size):
            part = slice(at, at + size)
            drawn.append(most_likely(kept.take(part)(logits_SV[part]).add_(gumbel(self._start_S[part], vocabulary))))
        return torch.where(self._samples_S, torch.cat(drawn), most_likely(logits_SV))
