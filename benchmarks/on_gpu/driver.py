"""Runs sections one after the other: a process each, records kept as they come, cut off when the time is over."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.on_gpu.records import read
from benchmarks.on_gpu.sections import Section

ROOT = Path(__file__).parents[2]
LOOK_S = 0.5
"""How often a silent section's time is looked at."""
TAIL = 25
"""Lines of output that are kept of a section that failed or was cut off."""

Clock = Callable[[], float]
Save = Callable[[dict[str, Any]], None]
"""Called with all results so far, whenever there is something new."""


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Whole or not at all, whatever ends the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(beside, path)


def run_sections(
    sections: Sequence[Section],
    results: dict[str, Any],
    save: Save,
    *,
    device: str,
    minutes: float,
    scale: float,
    clock: Clock = time.monotonic,
    command: Callable[[Section, str], list[str]] = Section.command,
) -> None:
    """Fill `results["sections"]`. A section's time ends when its limit and those of all before it have gone by, times
    `scale`, and never after `minutes`: so what one leaves over the next may use, and none takes another's."""
    begun, allotted = clock(), 0.0
    found = results["sections"] = {section.name: {"state": "waiting", "records": []} for section in sections}
    for section in sections:
        own = found[section.name]
        if lacking := section.lacks():
            own |= {"state": "passed over", "why": f"not installed: {', '.join(lacking)}"}
            print(f"--- {section.name}: passed over, {own['why']}", flush=True)
            save(results)
            continue
        allotted += section.limit_s * scale
        end = begun + min(allotted, 60 * minutes)
        if clock() >= end:
            own |= {"state": "cut", "why": "no time was left for it"}
            save(results)
            continue
        own |= {"state": "running", "limit_s": end - clock()}
        print(f"--- {section.name}: {own['limit_s']:.0f} s at most", flush=True)
        save(results)
        start = clock()
        run_section(own, [sys.executable, *command(section, device)], end, lambda: save(results), device, clock)
        own["seconds"] = clock() - start
        print(f"--- {section.name}: {own['state']} after {own['seconds']:.0f} s", flush=True)
        save(results)


def run_section(
    own: dict[str, Any], command: Sequence[str], end: float, changed: Callable[[], None], device: str, clock: Clock
) -> None:
    """Fill `own`: `records` as they come, then `state`: done, failed (with `returncode` and `tail`) or cut (`tail`)."""
    tail: deque[str] = deque(maxlen=TAIL)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", cwd=ROOT, env=environment(device), start_new_session=True,
    )  # fmt: skip
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()

    def take(line: str) -> None:
        record = read(line)
        if record is None:
            tail.append(without_places(line.rstrip("\n")))
            print(f"  {line}", end="", flush=True)
        else:
            own["records"].append(record)
            changed()

    try:
        while process.poll() is None or not lines.empty():
            left = end - clock()
            if left <= 0:
                own["state"] = "cut"
                break
            try:
                line = lines.get(timeout=min(left, LOOK_S))
            except queue.Empty:
                continue
            if line is not None:
                take(line)
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):  # its output is closed, it is about to end
                    process.wait(timeout=LOOK_S)
    finally:
        end_group(process)  # with what it may have left behind
        process.wait()
        reader.join(timeout=5)
    while not lines.empty():  # what it had said before it was stopped
        line = lines.get()
        if line is not None:
            take(line)
    if own["state"] == "running":
        own["state"] = "failed" if process.returncode else "done"
    if own["state"] != "done":
        own |= {"returncode": process.returncode, "tail": list(tail)}


def without_places(line: str) -> str:
    """Without where the checkout and its packages lie on this machine: results are for others to read."""
    return re.sub(r"/\S*/site-packages/", "site-packages/", line.replace(f"{ROOT}/", ""))


def _read(stream: Any, lines: queue.SimpleQueue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def end_group(process: subprocess.Popen[str]) -> None:
    """The section's process with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def environment(device: str) -> dict[str, str]:
    """The checkout before anything that is installed; without a GPU Triton's interpreter runs the kernels."""
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    found["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # to ask whether there is a GPU must not bar a fork
    return found if device == "cuda" else found | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}


def failed(results: Mapping[str, Any]) -> list[str]:
    """Sections that ended in an error, and checks that found a failure."""
    wrong = []
    for name, own in results["sections"].items():
        if own["state"] == "failed":
            wrong.append(f"{name}: ended with {own['returncode']}")
        for record in own["records"]:
            if record.get("failures"):
                wrong.append(f"{name}: {record['check']}: {len(record['failures'])} of {record['compared']} failed")
    return wrong
