"""The process that forks once per generated program. Run as a script by `execute.py`; standard library only.

Reads one JSON object from stdin (programs, limits, a token), runs every program in a fork of its own, writes one JSON
object with the verdicts and the token to stdout. Anything unexpected ends this process with an error, never a verdict.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import random
import resource
import selectors
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

PRELOADED = """abc array bisect cmath collections collections.abc copy dataclasses datetime decimal enum fractions
functools hashlib heapq itertools json math numbers operator random re statistics string struct textwrap time typing
unicodedata"""
"""What programs may import: a fork has them for nothing, and may be unable to read their files as another user."""

UNPRIVILEGED_UIDS = (1_900_000_000, 65_534)
"""What root becomes. The first is counted up by slot: programs that run side by side cannot signal each other."""

PR_SET_PDEATHSIG = 1
PIPE_FD = 3
READY, PASSED, FAILED = b"ready:", b"passed:", b"failed:"
MAX_REPORT = 4096
OPEN_FILES = 32
MAX_FD = 65_536
"""Descriptors from here on cannot be open: this process starts with three and opens two per running program."""


@dataclass
class Running:
    index: int
    slot: int
    pid: int
    pipe: int
    deadline: float
    nonce: bytes
    report: bytearray = field(default_factory=bytearray)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends; elsewhere than on Linux the limits remain."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def drop_root(slot: int) -> None:
    """Become an unprivileged user. Where no id is mapped, this is root of a user namespace only: limits bind."""
    if os.geteuid() != 0:
        return
    for uid in (UNPRIVILEGED_UIDS[0] + slot, UNPRIVILEGED_UIDS[1]):
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            return
        except OSError:
            continue


def confine(slot: int, parent: int, limits: dict[str, float], pipe: int) -> None:
    """Own session, no descriptors but /dev/null and the pipe, no privileges, and last of all the hard limits."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(pipe, PIPE_FD, inheritable=False)
    os.closerange(PIPE_FD + 1, MAX_FD)
    drop_root(slot)
    die_with_parent(parent)
    cpu_s, memory = math.ceil(limits["timeout_s"]) + 1, int(limits["memory_mib"] * 2**20)
    for what, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),  # not one more process or thread, however many the user already has
    ):
        if what == resource.RLIMIT_AS and sys.platform != "linux":
            continue  # elsewhere it is refused or ignored
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def explain(error: BaseException) -> str:
    """What was raised, without running the program's code (message, its own `__name__`); never the word "passed"."""
    return f"raised {type.__dict__['__name__'].__get__(type(error))}"


def judge(program: dict[str, str]) -> str:
    """Run program and test; '' if every assertion held, else why not."""
    namespace: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(program["source"], "<program>", "exec"), namespace)
        if program["entry_point"] not in namespace:
            return "the entry point is not defined"
        candidate = namespace[program["entry_point"]]
        exec(compile(program["test"], "<test>", "exec"), namespace)
        namespace["check"](candidate)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures like any other
        return explain(error)
    return ""


def child(program: dict[str, str], slot: int, parent: int, limits: dict[str, float], pipe: int, nonce: bytes) -> None:
    """Never returns. The nonce goes out only behind the last assertion, so that no way of ending early can pass."""
    status = 1
    try:
        confine(slot, parent, limits, pipe)
        os.write(PIPE_FD, READY)
        random.seed(0)
        failure = judge(program)
        os.write(PIPE_FD, FAILED + failure.encode(errors="replace")[:200] if failure else PASSED + nonce)
        status = 0
    finally:
        os._exit(status)


def start(index: int, slot: int, program: dict[str, str], limits: dict[str, float]) -> Running:
    nonce = os.urandom(16)
    read_end, write_end = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        child(program, slot, parent, limits, write_end, nonce)
    os.close(write_end)
    return Running(index, slot, pid, read_end, time.monotonic() + limits["timeout_s"], nonce)


def kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # a group of its own exists only once the child has called setsid
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def finish(run: Running, timed_out: bool) -> tuple[bool, str]:
    """End the program for good; (passed, reason). RuntimeError if it could not be confined in the first place."""
    kill_group(run.pid)
    status = os.waitstatus_to_exitcode(os.waitpid(run.pid, 0)[1])
    os.close(run.pipe)
    report = bytes(run.report)
    if timed_out:
        return False, "timeout"
    if not report.startswith(READY):
        raise RuntimeError("a child process could not be confined: limits or privileges could not be set")
    report = report.removeprefix(READY)
    if report == PASSED + run.nonce:
        return True, "passed"
    if report.startswith(FAILED):
        return False, report.removeprefix(FAILED).decode(errors="replace")
    ended = f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
    return False, f"{ended} before the tests ended"


def run_all(programs: list[dict[str, str]], limits: dict[str, float], workers: int) -> list[tuple[bool, str]]:
    """Verdicts in the order of `programs`, at most `workers` running at once."""
    verdicts: list[tuple[bool, str]] = [(False, "not run")] * len(programs)
    running: dict[int, Running] = {}
    slots = list(range(workers))
    todo = iter(enumerate(programs))
    with selectors.DefaultSelector() as selector:
        while True:
            while slots and (job := next(todo, None)) is not None:
                run = start(job[0], slots.pop(), job[1], limits)
                running[run.pipe] = run
                selector.register(run.pipe, selectors.EVENT_READ)
            if not running:
                return verdicts
            patience = min(run.deadline for run in running.values()) - time.monotonic()
            ended = set()
            for key, _ in selector.select(max(0.0, patience)):
                data = os.read(key.fd, MAX_REPORT)
                running[key.fd].report += data
                if not data or len(running[key.fd].report) > MAX_REPORT:
                    ended.add(key.fd)
            now = time.monotonic()
            for pipe in ended | {pipe for pipe, run in running.items() if run.deadline <= now}:
                run = running.pop(pipe)
                selector.unregister(pipe)
                verdicts[run.index] = finish(run, timed_out=pipe not in ended)
                slots.append(run.slot)


def check_limits(limits: dict[str, float]) -> None:
    """RuntimeError unless a confined process is really unable to make another one (root with no way to drop root)."""
    fork = {"source": "import os\nos.fork() or os._exit(0)\nf = 0", "test": "def check(f): pass", "entry_point": "f"}
    reason = run_all([fork], limits | {"timeout_s": 30.0}, workers=1)[0][1]
    if reason != "raised BlockingIOError":
        way_out = "run as an ordinary user, or as a root that may change its user"
        raise RuntimeError(f"programs could start processes here (trying to: {reason}); {way_out}")


def main() -> None:
    job = json.load(sys.stdin)
    os.environ.clear()
    die_with_parent(job["parent"])
    for name in PRELOADED.split():
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    check_limits(job["limits"])
    verdicts = run_all(job["programs"], job["limits"], job["workers"])
    json.dump({"token": job["token"], "verdicts": verdicts}, sys.stdout)


if __name__ == "__main__":
    main()
