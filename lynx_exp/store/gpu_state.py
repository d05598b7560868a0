"""What the NVIDIA driver says of the GPUs of this machine, by its management library (NVML).

All GPUs are listed, not only those that CUDA_VISIBLE_DEVICES leaves: a neighbour's load changes times, too. Values are
written as `nvidia-smi` prints them (`1980 MHz`, `700.00 W`, `[N/A]`), which is how records of every version have them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NewType, Protocol

Handle = NewType("Handle", object)
"""NVML's of a GPU."""


class _Process(Protocol):
    pid: int
    usedGpuMemory: int | None
    """In bytes."""


@cache
def gpu_state() -> dict[str, object] | None:
    """Facts of each GPU, its clock now, and the other processes that compute on them.

    None without an NVIDIA driver, or where it fails. Read once in a process: later it would see its own load.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            return _read(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _read(nvml: ModuleType) -> dict[str, object]:
    gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    own = (os.getpid(), os.getppid())
    others = [it for gpu in gpus for it in _processes(nvml, gpu) if it.pid not in own]

    def clock(gpu: Handle) -> str:
        return _mhz(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))

    return {
        "gpus": [_facts(nvml, gpu) for gpu in gpus],
        "clocks_sm": [_text(nvml, clock, gpu) for gpu in gpus],
        "other_processes": len(others),
        "other_memory": ["[N/A]" if it.usedGpuMemory is None else f"{it.usedGpuMemory >> 20} MiB" for it in others],
    }


def _processes(nvml: ModuleType, gpu: Handle) -> list[_Process]:
    """Those that compute; none where the driver does not list them, as of a card that is cut into slices."""
    try:
        return list(nvml.nvmlDeviceGetComputeRunningProcesses(gpu))
    except nvml.NVMLError:
        return []


def _facts(nvml: ModuleType, gpu: Handle) -> dict[str, str]:
    readers: dict[str, Callable[[Handle], str]] = {
        "name": nvml.nvmlDeviceGetName,
        "driver_version": lambda _: nvml.nvmlSystemGetDriverVersion(),
        "clocks.max.sm": lambda gpu: _mhz(nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM)),
        "clocks.max.mem": lambda gpu: _mhz(nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_MEM)),
        "power.limit": lambda gpu: f"{nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000:.2f} W",
        "mig.mode.current": lambda gpu: _switch(nvml.nvmlDeviceGetMigMode(gpu)[0]),
        "ecc.mode.current": lambda gpu: _switch(nvml.nvmlDeviceGetEccMode(gpu)[0]),
    }
    return {name: _text(nvml, read, gpu) for name, read in readers.items()}


def _text(nvml: ModuleType, read: Callable[[Handle], str], gpu: Handle) -> str:
    """`read(gpu)`; what a card does not have, such as ECC on one for games, is no reason to know nothing else of it."""
    try:
        return read(gpu)
    except nvml.NVMLError_NotSupported:
        return "[N/A]"


def _mhz(value: int) -> str:
    return f"{value} MHz"


def _switch(state: int) -> str:
    return "Enabled" if state else "Disabled"
