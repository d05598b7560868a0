"""Generated code, judged by its tests alone, in whichever sandbox this machine has; `sandbox/` tests each of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lynx_exp
from lynx_exp.tasks import ExecutionError, Program, run_programs
from lynx_exp.tasks.sandbox import start_supervisor as launch

PATIENT_S = 30.0
"""For programs that end by themselves, however busy the machine."""


def returns_one(source: str) -> Program:
    """A program that passes if its `f()` is 1."""
    return Program(source=source, test="def check(candidate):\n    assert candidate() == 1\n", entry_point="f")


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


REASONS = {
    "def f(): return 2": "raised AssertionError",
    "def f(:": "raised SyntaxError",
    "g = 1": "the entry point is not defined",
    "f = '\ud800'": "raised UnicodeEncodeError",
    "def f(): return f()": "raised RecursionError",
    "import sys\ndef f(): sys.exit(0)": "raised SystemExit",
    "raise SystemExit": "raised SystemExit",
    "def f(): raise KeyboardInterrupt": "raised KeyboardInterrupt",
    "import os\nos._exit(0)": "exited with status 0 before the tests ended",
    "import os\ndef f(): os._exit(0)": "exited with status 0 before the tests ended",
    "import ctypes\ndef f(): ctypes.string_at(0)": "killed by signal 11 before the tests ended",
    "def f(): return len('x' * 10**10)": "raised MemoryError",
    "class passed(Exception): pass\nraise passed": "raised passed",
    "class M(type): __name__ = property(lambda s: 'passed')\nclass E(Exception, metaclass=M): 0\nraise E": "raised E",
}


def test_reasons():
    results = run_programs([returns_one(source) for source in REASONS], timeout_s=PATIENT_S)
    assert [(result.passed, result.reason) for result in results] == [(False, reason) for reason in REASONS.values()]


def test_timeout():
    sources = ["def f():\n    while True: pass", "import time\ntime.sleep(1000)"]
    results = run_programs([returns_one(source) for source in sources], timeout_s=0.3)
    assert {result.reason for result in results} == {"timeout"}


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
        "crash": "import ctypes\nctypes.string_at(0)",
        "exit": "import os, builtins\nbuiltins.len = None\nos._exit(0)",
    }
    results = run_programs([returns_one(sources[kind]) for kind in kinds], timeout_s=PATIENT_S, workers=workers)
    assert [result.passed for result in results] == [kind == "good" for kind in kinds]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended with status -?\\d+: "),
        ("raise RuntimeError('no room')", "ended with status 1: RuntimeError: no room"),
        ("print('passed')", "an answer that is not JSON"),
        ('print(\'{"token": "guess", "verdicts": [[true, "passed"]]}\')', "does not belong to the question"),
    ],
)
def test_a_broken_supervisor_is_an_error(script, message, monkeypatch):
    run_programs([returns_one("def f(): return 1")])  # its self-test needs one that works
    monkeypatch.setattr(launch, "BOOT", script)
    with pytest.raises(ExecutionError, match=message):
        run_programs([returns_one("def f(): return 1")])


def test_a_stalled_supervisor_is_an_error(monkeypatch, tmp_path):
    run_programs([returns_one("def f(): return 1")])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(launch, "BOOT", "import time\ntime.sleep(1000)")
    monkeypatch.setattr(launch, "START_UP_S", 0.3)
    with pytest.raises(ExecutionError, match="gave no answer"):
        run_programs([returns_one("def f(): return 1")], timeout_s=0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"timeout_s": 0}, "timeout_s: 0, must be above 0"),
        ({"memory_mib": 16}, "memory_mib: 16, must be at least 128"),
        ({"workers": 0}, "workers: 0, must be at least 1"),
    ],
)
def test_bad_limits(limits, message):
    with pytest.raises(ValueError, match=message):
        run_programs([], **limits)


def test_no_programs():
    assert run_programs([]) == []


@pytest.fixture
def open_copy():
    """The package's code where anybody may read it: the checkout may lie in a folder that root alone may enter."""
    with tempfile.TemporaryDirectory(prefix="open-") as folder:
        Path(folder).chmod(0o755)
        package = Path(lynx_exp.__file__).parent
        ignored = shutil.ignore_patterns("__pycache__", "*.json", "*.jsonl", "*.safetensors")
        shutil.copytree(package, Path(folder, package.name), ignore=ignored, copy_function=shutil.copyfile)
        for path in Path(folder).rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
def test_as_an_ordinary_user(open_copy):
    """In every tier that such a user can have."""
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    code = f"""
import sys
sys.path.insert(0, {open_copy!r})
from lynx_exp.tasks.run_programs import Program, SandboxUnavailable, open_sandbox
test = "def check(f): assert f() == 1"
sources = ["def f(): return 1", "def f(): return 2", "import os\\ndef f(): os.fork(); return 1"]
programs = [Program(source=source, test=test, entry_point="f") for source in sources]
for tier in ("bubblewrap", "namespaces", "landlock", "auto"):
    try:
        sandbox = open_sandbox(tier)
    except SandboxUnavailable:
        continue
    print(*(verdict.reason for verdict in sandbox.run(programs, timeout_s=30.0)), sep=", ")
"""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            done = subprocess.run([python, "-B", "-c", code], capture_output=True, text=True, cwd="/", **nobody)
        except (PermissionError, FileNotFoundError):
            continue  # an interpreter in root's own folder
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) >= 2 and set(lines) == {"passed, raised AssertionError, raised BlockingIOError"}
        return
    pytest.skip("no interpreter that an ordinary user may start")
