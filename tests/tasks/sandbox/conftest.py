from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lynx_exp.tasks.sandbox import ExecutionError, Program, Sandbox, Verdict
from lynx_exp.tasks.sandbox import start_supervisor as launch
from lynx_exp.tasks.sandbox.jail.kernel import prctl
from lynx_exp.tasks.sandbox.sandbox import SandboxUnavailable, tried
from lynx_exp.tasks.sandbox.tiers import CONFINING, Tier

PATIENT_S = 30.0
"""For programs that end by themselves, however busy the machine."""


PR_SET_CHILD_SUBREAPER = 36


def first_of(tiers: tuple[Tier, ...]) -> Sandbox:
    try:
        return tried(tiers)
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(CONFINING, id="strongest"),
        *(pytest.param((tier,), id=tier.name, marks=pytest.mark.slow) for tier in CONFINING),
    ],
)
def sandbox(request) -> Sandbox:
    """The strongest tier that this machine can have; in the slow suite each that it can."""
    return first_of(request.param)


@pytest.fixture(scope="session", params=CONFINING, ids=lambda tier: tier.name)
def each_tier(request) -> Sandbox:
    """Each tier that this machine can have, in the fast suite too: for tests of a second."""
    return first_of((request.param,))


@pytest.fixture(scope="session")
def have() -> Callable[[Tier], None]:
    """Skip unless a tier, or one with a hole in it, can be had at all."""

    def check(tier: Tier) -> None:
        with contextlib.suppress(ExecutionError):
            launch.run(tier, [returns_one("def f(): return 1")], timeout_s=PATIENT_S, memory_mib=512, workers=1)
            return
        pytest.skip(f"no {tier.name} here")

    return check


def returns_one(source: str) -> Program:
    """A program that passes if its `f()` is 1."""
    return Program(source=source, test="def check(candidate):\n    assert candidate() == 1\n", entry_point="f")


def verdict(sandbox: Sandbox, source: str, test: str = "assert f() == 1", timeout_s: float = PATIENT_S) -> Verdict:
    [result] = sandbox.run([Program(source=source, test=test, entry_point=None)], timeout_s=timeout_s)
    return result


@pytest.fixture
def leftovers(tmp_path, monkeypatch) -> Iterator[Callable[[], list[object]]]:
    """Processes of the runs of this test that are still there, and files that they left in the temporary folder, which
    lies in memory where it can: what programs do to it is thousands of folders.

    What loses its parent meanwhile becomes a child of this process: runs that others have going are none of ours.
    """
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    folder = Path(tempfile.mkdtemp(dir=memory, prefix="lynx-exp-tests-"))
    folder.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    def find() -> list[object]:
        deadline = time.monotonic() + 20
        while True:
            found: list[object] = [*own_supervisors(), *sorted(folder.iterdir())]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    yield find
    prctl(PR_SET_CHILD_SUBREAPER, 0)
    shutil.rmtree(folder, ignore_errors=True)


def own_supervisors() -> list[bytes]:
    """Command lines of supervisors, and of all that was forked from one, below this process."""
    parents, lines = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(process.name)] = (process / "cmdline").read_bytes()

    def is_own(process: int) -> bool:
        while process and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return [
        line
        for process, line in lines.items()
        if b"from jail import supervisor" in line and process != os.getpid() and is_own(process)
    ]
