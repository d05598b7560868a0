"""How many CPU cores there are for this process."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Those that the scheduler lets this process run on: a cluster gives a job fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS, where psutil does not know them either
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
