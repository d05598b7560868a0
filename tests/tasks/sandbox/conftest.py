from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lynx_exp.tasks.sandbox import ExecutionError, Program, Sandbox, Verdict, launch
from lynx_exp.tasks.sandbox.sandbox import SandboxUnavailable, tried
from lynx_exp.tasks.sandbox.tiers import CONFINING, Tier

PATIENT_S = 30.0
"""For programs that end by themselves, however busy the machine."""


@pytest.fixture(scope="session", params=CONFINING, ids=lambda tier: tier.name)
def sandbox(request) -> Sandbox:
    """Every tier that this machine can have."""
    try:
        return tried((request.param,))
    except SandboxUnavailable as error:
        pytest.skip(str(error))


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
def leftovers(tmp_path, monkeypatch) -> Callable[[], list[object]]:
    """Processes of the runs of this test that are still there, and files that they left in the temporary folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = {process for process, _ in supervisors()}

    def find() -> list[object]:
        deadline = time.monotonic() + 20
        while True:
            found: list[object] = [line for process, line in supervisors() if process not in before]
            found += sorted(folder.iterdir())
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    return find


def supervisors() -> list[tuple[str, bytes]]:
    """Supervisors and all that was forked from one, by their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes()
            if b"from jail import supervisor" in line and int(process.name) != os.getpid():
                found.append((process.name, line))
    return found
