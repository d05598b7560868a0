"""What a program does to its folder costs its own verdict at most, never that of the program after it."""

# ruff: noqa: E501 (programs in a line each are read more easily than in three)
from __future__ import annotations

import pytest

from lynx_exp.tasks import Program
from lynx_exp.tasks.sandbox import open_sandbox

HEAD = "import contextlib, os, sys, time\ntry_it = contextlib.suppress(OSError)\n"
BREAK = {
    "mode of the folder": "with try_it: os.fchmod(os.open('.', 0), 0)\nwith try_it: os.chmod('.', 0)",
    "names of the cleaner": "for n in range(5):\n os.makedirs(f'a/{n}/b/c')\n for p in (os.getppid(), os.getpid(), 1):\n  os.makedirs(f'{n}-{p}-moved/x', exist_ok=True); os.makedirs(f'a/{n}-{p}-moved/x', exist_ok=True)",
    "locked folders": "for d in 'abc': os.makedirs(f'{d}/x/y'); open(f'{d}/x/y/z', 'w').close()\nos.umask(0o777)\nos.mkdir('d'); os.mkdir('a/d'); os.mkdir('a/x/d', 0)\nwith try_it: os.chmod('b/x/y', 0); os.chmod('b/x', 0); os.chmod('b', 0)",
    "deep": "for _ in range(600):\n with try_it: os.mkdir('d'); os.chdir('d')",
    "deep and long": "for _ in range(600):\n with try_it: os.mkdir('d' * 255); os.chdir('d' * 255)",
    "many": "for n in range(1000):\n with try_it: open(str(n), 'w').close()\n with try_it: os.makedirs(f'd{n}/e')",
    "huge names": "for c in range(1, 256):\n if c != 47:\n  with try_it: os.mkdir(bytes([c]) * 255)\n  with try_it: open(bytes([c]) * 254, 'w').close()",
    "odd names": "for n in (b'\\xff\\n', b' ', b'-rf', b'...', b'\\\\', b'*', b'\\xed\\xa0\\x80'): os.makedirs(n + b'/' + n)",
    "links": "os.symlink('/', 'root'); os.symlink('..', 'up'); os.symlink('loop', 'loop'); os.mkdir('a'); os.symlink('../a', 'a/a'); os.symlink('/' * 4000, 'long')\nwith try_it: os.link('root', 'again')",
    "open files": "held = [open(f'f{n}', 'w') for n in range(40)]\nos.mkdir('a'); fd = os.open('a', 0); os.chdir('a'); os.rmdir('../a')",
    "moved": "with try_it: os.rename('.', '../elsewhere')\nwith try_it: os.rename(os.getcwd(), os.getcwd() + '-moved')",
    "removed": "with try_it: os.rmdir(os.getcwd())\nwith try_it: os.rmdir('../' + os.path.basename(os.getcwd()))",
    "replaced": "here = os.getcwd()\nwith try_it: os.rename(here, here + '-'); os.symlink('/', here)",
    "the next folder": "here = os.getcwd()\nfor n in range(9):\n with try_it: os.mkdir(f'{here[:-1]}{n}')\n with try_it: os.mkdir(f'../{n}-1')",
    "full": "for n in range(80):\n with try_it: open(f'f{n}', 'wb').write(bytes(2**20 - 1))",
    "killed in the middle": "while True:\n os.mkdir('d'); os.chdir('d'); time.sleep(0.001)",
    "pipes and sockets": "import socket\nwith try_it: os.mkfifo('fifo')\nwith try_it: os.mknod('node')\nwith try_it: socket.socket(socket.AF_UNIX).bind('socket')",
}  # fmt: skip
GOOD = "import os\ndef f():\n open('x', 'w').close(); os.makedirs('a/b'); return len(os.listdir('.')) - 1"


@pytest.fixture(scope="module")
def unsafe():
    return open_sandbox("unsafe", confirm_unsafe_code=True)


def check(sandbox, leftovers, breaks):
    programs = []
    for source in breaks:
        programs.append(Program(source=f"{HEAD}{source}\ndef f(): return 1", test="assert f() == 1", entry_point=None))
        programs.append(Program(source=GOOD, test="assert f() == 1", entry_point=None))
    verdicts = sandbox.run(programs, timeout_s=5.0, workers=1)
    reasons = dict(zip(BREAK, (it.reason for it in verdicts[1::2]), strict=True))
    assert reasons == dict.fromkeys(BREAK, "passed")
    assert leftovers() == []


def test_the_next_program_has_its_verdict(sandbox, leftovers):
    check(sandbox, leftovers, BREAK.values())


def test_the_next_program_has_its_verdict_unconfined(unsafe, leftovers):
    check(unsafe, leftovers, BREAK.values())


def test_all_at_once(sandbox):
    """Beside one another, too: more slots than processors."""
    programs = [Program(source=f"{HEAD}{source}", test="", entry_point=None) for source in BREAK.values()]
    good = [Program(source=GOOD, test="assert f() == 1", entry_point=None)] * len(programs)
    mixed = [program for pair in zip(programs, good, strict=True) for program in pair]
    assert {it.reason for it in sandbox.run(mixed, timeout_s=10.0, workers=4)[1::2]} == {"passed"}
