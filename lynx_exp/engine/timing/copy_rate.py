"""The rate at which a device copies memory, measured: what a step that reads its bytes once could reach.

A data sheet's peak is reached by nobody; a copy is what a program can have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch

SIZES = {"cuda": 2**30, "cpu": 2**27}
"""Bytes of the source: far beyond every cache of a GPU, and beyond most of a CPU's."""
COPIES = {"cuda": 16, "cpu": 1}
"""Of a round: a copy takes a GPU less than a millisecond, of which the wait for it would be a part."""
_ROUNDS = 7
"""Of which the first, which takes pages and clocks up, does not count."""


def copy_rate(device: torch.device) -> float:
    """Gigabytes (1e9) a second, read and written both counted. Measured once in a process for each device and number of
    threads; 0.3 s on a CPU, milliseconds on a GPU."""
    return _measured(device, torch.get_num_threads())


@cache
def _measured(device: torch.device, _threads: int) -> float:
    size = SIZES.get(device.type, SIZES["cpu"])
    if device.type == "cuda":
        size = max(min(size, torch.cuda.mem_get_info(device)[0] // 4), 2**24)  # beside a model that fills the card
    return timed_copy(device, size, COPIES.get(device.type, 1))


def timed_copy(device: torch.device, size: int, copies: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """`copy_rate` of so many bytes, copied so many times in a round: the fastest round, since nothing makes a copy too
    fast. `clock`: seconds."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    times = []
    for _ in range(_ROUNDS):
        _wait(device)
        start = clock()
        for _ in range(copies):
            target.copy_(source)
        _wait(device)
        times.append(clock() - start)
    return 2 * size * copies / min(times[1:]) / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
