"""What tracker=wandb (offline) costs a run on this machine: a sweep of eight cells with it and without, in turns.

    python benchmarks/tracking.py [--repeats 3]

Whole processes are timed. The last line's ratio is the time without it over the time with it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.harness import interleave, paired_ratio, report

GRID = ("policy=vanilla,lynx", "batch_size=4,16", "task=mini_gsm8k,mini_humaneval", "limit=64")
GOAL = 0.67
"""No more than half as long again, on two cores that a process of its own shares, in a run of seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds = interleave({name: partial(sweep, name) for name in ("wandb", "none")}, options.repeats)
    for name, times in seconds.items():
        print(f"tracker={name}: {statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})")
    ratio, low, high = paired_ratio(seconds["none"], seconds["wandb"])
    case = {"ratio": ratio, "low": low, "high": high, "seconds": seconds}
    report("tracking", GOAL, case, [case])


def sweep(tracker: str) -> None:
    """Into an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["lynx-exp", "-m", *GRID, f"tracker={tracker}", f"results={Path(folder) / 'results'}"]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
