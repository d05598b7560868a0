"""Real processes on one results folder: stopped for longer than a claim lasts and woken, in PID namespaces of their own
under one host name, on a folder that becomes read-only. No crash, and no cell lost or damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("LYNX_WRITER_ROUNDS", "16"))
NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]


def words(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.kills.writers", *map(str, arguments)]


def asked(*arguments: object, prefix: list[str] | None = None) -> dict[str, Any]:
    done = subprocess.run([*(prefix or []), *words(*arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def needs(prefix: list[str]) -> None:
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip(f"not allowed here: {' '.join(prefix)}")


@pytest.mark.slow
def test_stopped_and_woken(tmp_path, capsys):
    found = asked("stops", tmp_path, ROUNDS)
    tally = found["tally"]
    assert found.get("rounds") == ROUNDS, found
    assert tally["cells"] == 6 * ROUNDS and tally["taken over"]
    assert {tally[name] for name in ("runs that failed", "lost", "damaged", "left lying about")} == {0}, tally
    with capsys.disabled():
        print(f"\n{ROUNDS} rounds of three writers: {tally}")


@pytest.mark.slow
def test_two_pid_namespaces_under_one_host_name(tmp_path):
    needs(NAMESPACE)
    cell = tmp_path / "cell"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([*NAMESPACE, *words("hold", cell)], cwd=ROOT, text=True, **pipes) as holder:  # type: ignore[call-overload]
        assert json.loads(holder.stdout.readline()) == {"taken": True, "pid": 1}
        for prefix in (NAMESPACE, []):
            found = asked("try", cell, prefix=prefix)
            assert (found["alive"], found["taken"]) == (None, False) and found["host"] == os.uname().nodename
        out, _ = holder.communicate("go on\n")
        assert json.loads(out) == {"mine": True}
    assert asked("try", cell) == {"alive": None, "taken": True, "host": None}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["chmod", "remount"])
def test_a_folder_that_becomes_read_only(how, tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can become another user, or mount")
    prefix = ["unshare", "--mount"] if how == "remount" else []
    needs(prefix)
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:  # a worker of xdist has a folder of its own
        parent.chmod(0o755)
    found = asked("readonly", tmp_path, how, prefix=prefix)
    assert found["failed"] and found["then"] == 0, found
    assert all("\n" not in error for error in found["errors"]), found
    assert found["tally"] == {"cells": 6, "lost": 0, "damaged": 0, "left lying about": 0}
    word = "may only be read by now" if how == "remount" else "Permission denied"
    assert any(word in error for error in found["errors"]), found
