"""How many rows fit, and what running out of memory looks like."""

from __future__ import annotations

import psutil
import torch

GIB = 2**30


class OutOfMemory(RuntimeError):
    """A lane alone needs more memory than there is."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__(f"out of memory with {rows} rows; a lane of batch_size={width} cannot be made smaller")


def memory_budget(device: torch.device, memory_gib: float | None) -> int:
    """Bytes for keys, values and prefilled prompts: as asked for, else half of a CPU's available memory, or 80 % of
    what a GPU has free."""
    if memory_gib is not None:
        return int(memory_gib * GIB)
    if device.type == "cuda":
        return int(0.8 * torch.cuda.mem_get_info(device)[0])
    return available_memory() // 2


def slots_that_fit(wanted: int, widest: int, row_bytes: int, budget: int) -> int:
    """`wanted` slots, or as many as fit, but room for a lane of `widest` rows at least; ValueError if even that does
    not fit."""
    most = max(budget // row_bytes, 0)
    if most < widest:
        raise ValueError(
            f"batch_size={widest}: the keys and values of {widest} rows need {widest * row_bytes / GIB:.2f} GiB; "
            f"pack.memory_gib allows {budget / GIB:.2f} GiB, that is a batch_size of {most} at most"
        )
    return max(min(wanted, most), widest)


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def available_memory() -> int:
    """Bytes of host memory that can be had without swapping."""
    return int(psutil.virtual_memory().available)
