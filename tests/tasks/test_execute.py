"""Generated code: judged by its tests alone, held within its limits, gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.tasks import ExecutionError, Program, execute, run_programs

PATIENT_S = 30.0
"""For programs that end by themselves, however busy the machine."""


def returns_one(source: str) -> Program:
    """A program that passes if its `f()` is 1."""
    return Program(source=source, test="def check(candidate):\n    assert candidate() == 1\n", entry_point="f")


def verdict(source: str, timeout_s: float = PATIENT_S) -> tuple[bool, str]:
    [result] = run_programs([returns_one(source)], timeout_s=timeout_s)
    return result.passed, result.reason


@pytest.fixture
def leftovers(tmp_path, monkeypatch):
    """The processes whose working directory lies in the temporary folder that the runs of this test use."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def find() -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "cwd").startswith(str(tmp_path)):
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    return find


def test_every_gold_solution_passes(items):
    programs = [
        Program(source=item.prompt + item.answer, test=item.doc["test"], entry_point=item.doc["entry_point"])
        for item in items("mini_humaneval")
    ]
    assert len(programs) == 400
    assert {result.reason for result in run_programs(programs, timeout_s=PATIENT_S)} == {"passed"}


def test_another_items_solution_fails(items):
    gold = items("mini_humaneval")[:40]
    programs = [
        Program(
            source=f"def {item.doc['entry_point']}(*_):\n    return object()\n",
            test=item.doc["test"],
            entry_point=item.doc["entry_point"],
        )
        for item in gold
    ]
    assert {result.reason for result in run_programs(programs, timeout_s=PATIENT_S)} == {"raised AssertionError"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(): return 2", "raised AssertionError"),
        ("def f(:", "raised SyntaxError"),
        ("g = 1", "the entry point is not defined"),
        ("f = '\ud800'", "raised UnicodeEncodeError"),
        ("def f(): return f()", "raised RecursionError"),
        ("import sys\ndef f(): sys.exit(0)", "raised SystemExit"),
        ("raise SystemExit", "raised SystemExit"),
        ("def f(): raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("import os\nos._exit(0)", "exited with status 0 before the tests ended"),
        ("import os\ndef f(): os._exit(0)", "exited with status 0 before the tests ended"),
        ("import os\ndef f(): os.kill(os.getpid(), 15)", "killed by signal 15 before the tests ended"),
        (
            "import os\ndef f(): os.write(3, b'passed:' + bytes(16)); os._exit(0)",
            "exited with status 0 before the tests ended",
        ),
        ("import os\nos.close(3)\ndef f():\n    while True: pass", "killed by signal 9 before the tests ended"),
        ("import os\ndef f():\n    while True: os.write(3, bytes(999))", "killed by signal 9 before the tests ended"),
        ("import ctypes\ndef f(): ctypes.string_at(0)", "killed by signal 11 before the tests ended"),
        ("def f(): return len('x' * 10**10)", "raised MemoryError"),
        ("import os\ndef f():\n    while True: os.fork()", "raised BlockingIOError"),
        ("import _thread\ndef f(): _thread.start_new_thread(int, ()); return 1", "raised RuntimeError"),
        ("def f():\n    with open('file', 'w') as file: file.write('x')\n    return 1", None),
        ("class passed(Exception): pass\nraise passed", "raised passed"),
        (
            "class M(type): __name__ = property(lambda s: 'passed')\nclass E(Exception, metaclass=M): pass\nraise E",
            "raised E",
        ),
    ],
)
def test_never_passes(source, reason):
    passed, why = verdict(source)
    assert not passed
    assert why == reason or reason is None


@pytest.mark.parametrize("source", ["def f():\n    while True: pass", "import time\ntime.sleep(1000)"])
def test_timeout(source, leftovers):
    began = time.monotonic()
    assert verdict(source, timeout_s=0.3) == (False, "timeout")
    assert time.monotonic() - began < 20
    assert leftovers() == []


def test_what_a_program_sees():
    source = """
import os, random, sys
def f():
    assert dict(os.environ) == {}, os.environ
    assert sys.stdin.read() == ""
    print("x" * 10_000_000)
    assert os.getsid(0) == os.getpid()
    assert sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:4] == [0, 1, 2, 3]
    assert len(os.listdir("/proc/self/fd")) == 5  # and the one that lists them
    assert os.listdir(".") == []
    assert not [path for path in sys.path if "site-packages" in path]
    assert os.geteuid() != 0
    return 1
"""
    assert verdict(source) == (True, "passed")


def test_same_hashes_and_random_numbers_every_time():
    source = "import random\ndef f(): raise type(f'E{hash(str(7))}_{random.random()}', (Exception,), {})"
    reasons = {
        result.reason for _ in range(2) for result in run_programs([returns_one(source)] * 2, timeout_s=PATIENT_S)
    }
    assert len(reasons) == 1


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from(["good", "wrong", "crash", "exit"]), min_size=1, max_size=12), st.integers(1, 4))
def test_programs_do_not_touch_one_another(kinds, workers):
    sources = {
        "good": "def f(): return 1",
        "wrong": "def f(): return 2",
        "crash": "import os\nos.kill(os.getpid(), 9)",
        "exit": "import os, builtins\nbuiltins.len = None\nos._exit(0)",
    }
    results = run_programs([returns_one(sources[kind]) for kind in kinds], timeout_s=PATIENT_S, workers=workers)
    assert [result.passed for result in results] == [kind == "good" for kind in kinds]


def test_a_process_cannot_be_left_behind(leftovers):
    source = "import os, time\ntry:\n    os.fork() or time.sleep(1000)\nexcept OSError: pass\ndef f(): return 1"
    assert verdict(source) == (True, "passed")
    assert leftovers() == []


def test_nothing_survives_the_death_of_the_zygote(leftovers, tmp_path, monkeypatch):
    """A zygote killed while a program sleeps: an error, and the sleeping program dies with it."""
    script = tmp_path / "suicidal.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {str(execute.ZYGOTE.parent)!r})
import zygote
zygote.check_limits = lambda limits: None
zygote.finish = lambda *_, **__: os.kill(os.getpid(), 9)
zygote.main()
""")
    monkeypatch.setattr(execute, "ZYGOTE", script)
    programs = [returns_one("import time\ntime.sleep(1000)"), returns_one("raise ValueError")]
    with pytest.raises(ExecutionError, match="ended with status -9"):
        run_programs(programs, timeout_s=PATIENT_S, workers=2)
    deadline = time.monotonic() + 20
    while leftovers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers() == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9: no message"),
        ("raise RuntimeError('no room')", "ended with status 1: RuntimeError: no room"),
        ("print('passed')", "an answer that is not JSON"),
        ('print(\'{"token": "guess", "verdicts": [[true, "passed"]]}\')', "does not belong to the question"),
    ],
)
def test_a_broken_zygote_is_an_error(script, message, tmp_path, monkeypatch):
    path = tmp_path / "zygote.py"
    path.write_text(script)
    monkeypatch.setattr(execute, "ZYGOTE", path)
    with pytest.raises(ExecutionError, match=message):
        run_programs([returns_one("def f(): return 1")])


def test_a_stalled_zygote_is_an_error(tmp_path, monkeypatch, leftovers):
    path = tmp_path / "zygote.py"
    path.write_text("import time\ntime.sleep(1000)")
    monkeypatch.setattr(execute, "ZYGOTE", path)
    monkeypatch.setattr(execute, "START_UP_S", 0.3)
    with pytest.raises(ExecutionError, match="gave no answer"):
        run_programs([returns_one("def f(): return 1")], timeout_s=0.1)
    assert leftovers() == []


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"timeout_s": 0}, "timeout_s: 0, must be above 0"),
        ({"memory_mib": 16}, "memory_mib: 16, must be at least 128"),
        ({"workers": 0}, "workers: 0, must be at least 1"),
    ],
)
def test_bad_limits(settings_, message):
    with pytest.raises(ValueError, match=message):
        run_programs([], **settings_)


def test_no_programs():
    assert run_programs([]) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
def test_as_an_ordinary_user():
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    root = str(Path(execute.__file__).parents[2])
    code = f"""
import sys
sys.path.insert(0, {root!r})
from lynx_exp.tasks.execute import ExecutionError, Program, run_programs
test = "def check(f): assert f() == 1"
sources = ["def f(): return 1", "def f(): return 2", "import os\\ndef f(): os.fork(); return 1"]
programs = [Program(source=source, test=test, entry_point="f") for source in sources]
print(*(verdict.reason for verdict in run_programs(programs, timeout_s=30.0)), sep=", ")
try:
    run_programs([Program(source="import os\\nos.kill(os.getppid(), 9)", test=test, entry_point="f")])
except ExecutionError as error:
    print(error)
"""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            done = subprocess.run([python, "-B", "-c", code], capture_output=True, text=True, cwd="/", **nobody)
        except PermissionError:
            continue  # an interpreter in root's own folder
        except FileNotFoundError:
            continue
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "passed, raised AssertionError, raised BlockingIOError",
            "the process that runs programs ended with status -9: no message",
        ]
        return
    pytest.skip("no interpreter that an ordinary user may start")
