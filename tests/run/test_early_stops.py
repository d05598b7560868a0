"""SIGTERM at any time of a command, its imports included, ends with the code that asks to be queued again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lynx_exp.run.interrupt import Preempted, check, check_wrapped, stoppable

SIGNALLED = """
import os, signal, sys

class Count:
    seen, at = 0, int(sys.argv.pop(1))
    def find_spec(self, name, path=None, target=None):
        Count.seen += 1  # first: what the signal raises leaves here
        if Count.seen == Count.at + 1:
            os.kill(os.getpid(), signal.SIGTERM)

from lynx_exp.cli import main
sys.meta_path.insert(0, Count())
try:
    main()
finally:
    print("imports", Count.seen)
"""
"""The n-th import after the command began sends the signal."""


def lynx_exp(folder: Path, at: int) -> tuple[int, int, str]:
    """(code, imports, what it says)"""
    words = ["-m", "task=mini_gsm8k", "policy=vanilla", "limit=2", "batch_size=2", f"results={folder}/results"]
    call = [sys.executable, "-c", SIGNALLED, str(at), *words]
    done = subprocess.run(call, capture_output=True, text=True)
    return done.returncode, int(done.stdout.split()[-1]), done.stderr


@pytest.mark.parametrize("at", [0, 40])
def test_a_signal_while_hydra_is_imported(at, tmp_path):
    code, _, said = lynx_exp(tmp_path, at)
    assert (code, said) == (75, "lynx-exp: terminated: nothing was begun; queue the same command again to continue\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Preempted])
def test_a_stop_that_python_wrapped_is_one(stop):
    """What is raised while a class is made is an error of another kind in Python 3.11."""

    class Field:
        def __set_name__(self, owner, name):
            try:
                raise ValueError("of the class")
            finally:
                raise stop("somebody")

    with pytest.raises(stop, match="somebody"):
        try:
            type("Made", (), {"field": Field()})
        except Exception as error:
            check_wrapped(error)
            raise
    check_wrapped(ValueError("no stop"))


@pytest.mark.slow
def test_a_signal_at_any_import(tmp_path):
    code, imports, _ = lynx_exp(tmp_path / "whole", 10**9)
    assert code == 0 and imports > 500
    for part in range(8):
        at = imports * part // 8 + 11
        code, _, said = lynx_exp(tmp_path / str(part), at)
        assert code == 75, (at, code, said)
        last = said.strip().splitlines()[-1]
        assert last.startswith("lynx-exp: terminated: ") and last.endswith("queue the same command again to continue")
        assert "Traceback" not in said
    left = [json.loads(path.read_text())["state"] for path in tmp_path.glob("[0-9]/results/**/status.json")]
    assert set(left) <= {"preempted", "done"}


def test_a_signal_whose_exception_was_swallowed_stops_all_the_same():

    with stoppable():
        check()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as swallowed:
            assert isinstance(swallowed, Preempted)
        with pytest.raises(Preempted):
            check()
    check()


SWALLOWED = """
import os, signal
from lynx_exp.cli import main
from lynx_exp.run.interrupt import Preempted
from lynx_exp.store.cell_writer import CellWriter

commit = CellWriter.commit
def committed(self, *given, **named):
    commit(self, *given, **named)
    print("lane", flush=True)
    try:  # as a callback of compiled code does
        os.kill(os.getpid(), signal.SIGTERM)
    except Preempted:
        pass
CellWriter.commit = committed
main()
"""


def test_a_signal_that_compiled_code_swallowed_stops_at_the_next_lane(tmp_path):
    words = ["task=mini_gsm8k", "limit=6", "batch_size=2", "batching=static", f"results={tmp_path}/results"]
    done = subprocess.run([sys.executable, "-c", SWALLOWED, *words], capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert done.stdout.splitlines().count("lane") == 1
    assert "Traceback" not in done.stderr and "terminated: " in done.stderr.splitlines()[-1]
