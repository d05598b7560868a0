"""Every check and benchmark that needs a GPU, in one command of eight minutes; needs torch, transformers and triton.

    python benchmarks/gpu.py [--minutes 8] [--only qwen3_30b_a3b experts] [--quick] [--dry-run]

Sections in order of worth (`on_gpu/sections.py`), each a process of its own with its own time; what one leaves over the
next may use, and one that overruns is named `cut` with what it had found. The kernels are compiled first, on all cores.
Results are written as they come, to benchmarks/results/<the GPU's name>.json, and a table at the end holds them against
the goals (`on_gpu/goals.py`). Exits with 1 if a check failed, or a section ended in an error.

`--quick`: few cases of each section in three minutes, to see that all works on a card before its time is spent.
`--device cpu`: the same sections on the smallest shapes, kernels in Triton's interpreter; proves that they run, and
says nothing of speed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # from a checkout, nothing need be installed

from benchmarks.on_gpu import driver, goals  # noqa: E402
from benchmarks.on_gpu.sections import MINUTES, QUICK_MINUTES, SECTIONS  # noqa: E402

PACKAGES = ("torch", "triton", "transformers")


def gpu_name() -> str | None:
    """The name of the GPU, read in a process of its own: a CUDA context here would take memory from the benchmarks."""
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return process.stdout.strip() or None


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help=f"in all (default: {MINUTES:g}, with --quick {QUICK_MINUTES:g})")
    parser.add_argument(
        "--quick", action="store_true", help="few cases of each section, to see that all works on this card"
    )
    parser.add_argument("--only", nargs="+", metavar="SECTION", help=", ".join(section.name for section in SECTIONS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="the file of results (default: by the GPU's name)")
    parser.add_argument("--dry-run", action="store_true", help="print the sections and their limits; run nothing")
    given = parser.parse_args()
    if given.minutes is None:
        given.minutes = QUICK_MINUTES if given.quick else MINUTES
    if not given.minutes > 0:
        parser.error(f"--minutes {given.minutes:g}: must be above 0")
    known = [section.name for section in SECTIONS]
    for name in given.only or ():
        if name not in known:
            parser.error(f"--only {name}: unknown; there are {', '.join(known)}")
    return given


def main() -> None:
    given = arguments()
    chosen = [section for section in SECTIONS if given.only is None or section.name in given.only]
    # one section alone has all the time
    scale = 60 * given.minutes / sum(section.limit_s for section in chosen)
    if given.dry_run:
        for section in chosen:
            lacking = f", passed over: no {', '.join(section.lacks())}" if section.lacks() else ""
            command = " ".join(section.command(given.device, given.quick))
            print(f"{section.name:<14} {section.limit_s * scale:>5.0f} s  {command}{lacking}")
        return
    begun = time.monotonic()
    gpu = gpu_name() if given.device == "cuda" else "cpu"
    if gpu is None:
        sys.exit(
            "benchmarks/gpu.py: torch sees no GPU on this machine; nothing was run (--device cpu tries the sections)"
        )
    where = given.out or HERE / "results" / (
        re.sub(r"\W+", "_", gpu.lower()) + (".quick.json" if given.quick else ".json")
    )
    results: dict[str, Any] = {"gpu": gpu, **versions(), "minutes": given.minutes, "quick": given.quick}
    results["started"] = datetime.now(UTC).isoformat(timespec="seconds")

    def save(found: dict[str, Any]) -> None:
        driver.write(where, found)

    left = given.minutes - (time.monotonic() - begun) / 60
    driver.run_sections(
        chosen, results, save, device=given.device, minutes=left, scale=scale,
        command=lambda section, device: section.command(device, given.quick),
    )  # fmt: skip
    results["goals"] = goals.table(results)
    results["failed"] = driver.failed(results)
    save(results)
    summary = goals.lines(results["goals"]) if given.device == "cuda" else []
    states = ", ".join(f"{name} {own['state']}" for name, own in results["sections"].items())
    print("", *summary, "", states, *(f"FAILED {line}" for line in results["failed"]), f"written: {where}", sep="\n")
    sys.exit(bool(results["failed"]))


if __name__ == "__main__":
    main()
