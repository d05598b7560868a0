"""Energy of decode steps, from the counter of the GPU's driver (NVML), where there is one.

The counter adds up millijoules since the driver was loaded, of the whole board: what the card draws while it does
nothing, too. It moves in jumps, some ten a second, so that a window of a few steps says nothing: each subject runs on
its own for LEAST_S, and the jumps at both ends are a twentieth of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

LEAST_S = 2.0

Meter = Callable[[], float]
"""Joules since some moment."""


def meter_of(devices: set[torch.device]) -> Meter | None:
    """Of all of these devices together; None where one has no counter: a CPU, a slice of a card, a driver that is not
    there, or no `nvidia-ml-py` (the engine runs without it)."""
    if not devices or any(device.type != "cuda" for device in devices):
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(_uuid(device)) for device in devices]

        def joules() -> float:
            return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1e3

        joules()  # a card that has no counter says so when it is asked
    except pynvml.NVMLError:
        return None
    return joules


def _uuid(device: torch.device) -> str:
    """As NVML names it, which knows nothing of CUDA_VISIBLE_DEVICES."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def joules_per_token(
    turns: Mapping[str, Callable[[], object]],
    tokens: int,
    meter: Meter,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """name -> joules of a token. Each of `turns` makes `tokens` of them and returns when the device has done so; it is
    repeated for LEAST_S seconds of `clock`."""
    found = {}
    for name, turn in turns.items():
        turn()  # what the subject before has left to do is not this one's
        start, began, count = clock(), meter(), 0
        while count == 0 or clock() - start < LEAST_S:
            turn()
            count += 1
        found[name] = (meter() - began) / (count * tokens)
    return found
