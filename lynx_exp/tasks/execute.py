"""Run generated code in child processes and judge it by its tests.

Each program runs in a process of its own, forked from a bare interpreter: no environment, an empty temporary folder as
working directory, only the standard library. It has its own session, no descriptors but /dev/null and one pipe for the
verdict, limits on time, memory, open files and file size, and it cannot start processes or threads. When the caller is
root it runs as an unprivileged user, with the modules that `zygote.py` preloads (it may be unable to read others). It
passes only if the harness code behind the last assertion reports a nonce: exiting, printing or being killed never
passes. Hash seed and random seed are fixed, so that verdicts repeat.

What this does NOT stop, and leaves to a stronger sandbox: reading whatever files the user may read, making empty files,
deleting the user's files (as root: only what anybody may read, make or delete); the network; signals to other processes
of the same user, when the caller is not root; a search of the interpreter's frames or memory for the nonce; objects
that are equal to everything. Do not run code from a source that means harm.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

ZYGOTE = Path(__file__).with_name("zygote.py")
START_UP_S = 60.0
"""Grace for interpreter start and bookkeeping, above the time that the programs themselves may take."""


class ExecutionError(RuntimeError):
    """The machinery that runs programs failed; nothing is known about any program."""


@dataclass(frozen=True, kw_only=True)
class Program:
    source: str
    """Python code that defines the entry point."""
    test: str
    """Python code that defines `check(candidate)`, which raises if the candidate is wrong."""
    entry_point: str
    """Name of the function or class that is handed to `check`."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    passed: bool
    reason: str
    """`passed` if and only if it did; else `timeout`, `raised <class of exception>`, or how the process ended."""


def run_programs(
    programs: Sequence[Program], *, timeout_s: float = 3.0, memory_mib: int = 512, workers: int | None = None
) -> list[Verdict]:
    """One verdict per program, in order. Nothing is left running when this returns or raises.

    `timeout_s` is wall-clock time of one program; `memory_mib` its address space, the interpreter's own 50 or so
    included; `workers` how many run at once (default: the CPUs that this process may use). ValueError for a limit
    that makes no sense; ExecutionError if the machinery itself fails.
    """
    if timeout_s <= 0:
        raise ValueError(f"timeout_s: {timeout_s}, must be above 0")
    if memory_mib < 128:
        raise ValueError(f"memory_mib: {memory_mib}, must be at least 128: the interpreter needs some itself")
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers: {workers}, must be at least 1")
    if not programs:
        return []

    token = secrets.token_hex()
    job = {
        "token": token,
        "parent": os.getpid(),
        "limits": {"timeout_s": timeout_s, "memory_mib": memory_mib},
        "workers": workers,
        "programs": [asdict(program) for program in programs],
    }
    answer = _ask_zygote(json.dumps(job), START_UP_S + timeout_s * ceil(len(programs) / workers) * 1.5)
    if answer.get("token") != token or len(answer.get("verdicts", ())) != len(programs):
        raise ExecutionError("the process that runs programs gave an answer that does not belong to the question")
    return [Verdict(passed=passed, reason=reason) for passed, reason in answer["verdicts"]]


def _ask_zygote(question: str, patience_s: float) -> dict:
    """Start the zygote, hand it the question, wait for its answer. ExecutionError if it dies, stalls or babbles."""
    with tempfile.TemporaryDirectory(prefix="programs-") as empty_folder:
        os.chmod(empty_folder, 0o755)  # programs of root run as another user
        # -s -S -P and an environment of one entry: as isolated as -I, which would ignore the hash seed
        zygote = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", str(ZYGOTE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},
            cwd=empty_folder,
            start_new_session=True,
        )
        try:
            output, errors = zygote.communicate(question.encode(), timeout=patience_s)
        except subprocess.TimeoutExpired:
            raise ExecutionError(f"the process that runs programs gave no answer in {patience_s:.0f} s") from None
        finally:
            if zygote.poll() is None:
                os.killpg(zygote.pid, signal.SIGKILL)
                zygote.communicate()
    if zygote.returncode != 0:
        last_line = errors.decode(errors="replace").strip().rpartition("\n")[2] or "no message"
        raise ExecutionError(f"the process that runs programs ended with status {zygote.returncode}: {last_line}")
    try:
        return json.loads(output)
    except ValueError:
        raise ExecutionError("the process that runs programs gave an answer that is not JSON") from None
