"""Programs that mean harm, or to pass without an answer: none passes in any tier, and none leaves anything behind.

Each source defines `f`, which tries something and returns 1 if it worked. `AT` tells it where things lie outside.
"""

# ruff: noqa: E501 (programs in a line each are read more easily than in three)
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lynx_exp.tasks import Program
from lynx_exp.tasks.sandbox.self_test import outside

HEAD = "import contextlib, ctypes, errno, json, os, sys, time\nAT = json.loads({at!r})\n"
LIBC = "libc = ctypes.CDLL(None, use_errno=True)\n"
SECRET = "secret-of-the-parent"

ESCAPES = {
    # starting programs and processes
    "posix.system": "import posix\ndef f(): assert posix.system('true') == 0; return 1",
    "os.system": "def f(): assert os.system('touch ' + AT['folder'] + '/x') == 0; return 1",
    "reload os": "import importlib\nos.system = None\ndef f(): assert importlib.reload(os).system('true') == 0; return 1",
    "subprocess": "import subprocess\ndef f(): subprocess.run(['true'], check=True); return 1",
    "fork": "def f(): os.fork() or os._exit(0); return 1",
    "forkpty": "def f(): os.forkpty()[0] or os._exit(0); return 1",
    "posix_spawn": "def f(): os.posix_spawn('/usr/bin/env', ['env'], {}); return 1",
    "exec": "def f(): os.execv('/usr/bin/env', ['env'])",
    "raw fork": LIBC + "def f(): assert libc.syscall(57) >= 0; return 1",
    "raw vfork": LIBC + "def f(): assert libc.syscall(58) >= 0; return 1",
    "raw clone": LIBC + "def f(): assert libc.syscall(56, 17, 0, 0, 0, 0) >= 0; return 1",
    "raw clone3": LIBC + "def f():\n b = (ctypes.c_uint64 * 8)(); b[4] = 17; assert libc.syscall(435, b, 64) >= 0; return 1",
    "memfd and exec": LIBC + "def f():\n fd = libc.syscall(319, b'x', 0); assert fd >= 0; os.execve(fd, ['x'], {})",
    "fork bomb": "def f():\n while True:\n  with contextlib.suppress(BlockingIOError): os.fork()",
    "multiprocessing": "import multiprocessing\ndef f():\n p = multiprocessing.Process(target=print); p.start(); p.join(); return 1",
    "daemon": "def f():\n if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n   while True: time.sleep(1)\n return 1",
    # the kernel's side doors
    "raw socket call": LIBC + "def f(): assert libc.syscall(41, 2, 1, 0) >= 0; return 1",
    "raw execve": LIBC + "def f():\n a = (ctypes.c_char_p * 2)(b'env', None); assert libc.syscall(59, b'/usr/bin/env', a, 0) == 0; return 1",
    "raw ptrace": LIBC + "def f(): assert libc.syscall(101, 16, AT['parent'], 0, 0) == 0; return 1",
    "raw open": LIBC + "def f(): assert libc.syscall(2, AT['canary'].encode(), 0) >= 0; return 1",
    "raw openat2": LIBC + "def f():\n how = (ctypes.c_uint64 * 3)(); assert libc.syscall(437, -100, AT['canary'].encode(), how, 24) >= 0; return 1",
    "32 bit calls": "import mmap\ndef f():\n m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n assert ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))() > 0; return 1",
    "x32 calls": LIBC + "def f(): assert libc.syscall(0x40000000 + 39) > 0; return 1",
    "io_uring": LIBC + "def f(): assert libc.syscall(425, 8, (ctypes.c_char * 120)()) >= 0; return 1",
    "bpf": LIBC + "def f(): assert libc.syscall(321, 0, (ctypes.c_char * 120)(), 120) >= 0; return 1",
    "perf": LIBC + "def f(): assert libc.syscall(298, (ctypes.c_char * 120)(), 0, -1, -1, 0) >= 0; return 1",
    "userfaultfd": LIBC + "def f(): assert libc.syscall(323, 1) >= 0; return 1",
    "keys": LIBC + "def f(): assert libc.syscall(248, b'user', b'x', b'y', 1, -2) >= 0; return 1",
    "keyctl": LIBC + "def f(): assert libc.syscall(250, 0, -3, 0) >= 0; return 1",
    "user namespace": LIBC + "def f(): assert libc.unshare(0x10000000) == 0; return 1",
    "mount": LIBC + "def f(): assert libc.mount(b'none', b'/', None, 0x44000, None) == 0; return 1",
    "pivot_root": LIBC + "def f(): assert libc.syscall(155, b'.', b'.') == 0; return 1",
    "chroot": "def f(): os.chroot('.'); return 1",
    "process_vm_readv": LIBC + "def f(): assert libc.syscall(310, AT['parent'], 0, 0, 0, 0, 0) == 0; return 1",
    "pidfd": "def f(): os.pidfd_open(AT['parent']); return 1",
    "another filter": LIBC + "def f(): assert libc.prctl(22, 1, 0, 0, 0) == 0; return 1",
    "parent death signal": LIBC + "def f(): assert libc.prctl(1, 0, 0, 0, 0) == 0; return 1",
    "dumpable": LIBC + "def f(): assert libc.prctl(4, 1, 0, 0, 0) == 0; return 1",
    "system v memory": LIBC + "def f(): assert libc.shmget(0, 4096, 0o1600) >= 0; return 1",
    "shared memory": "from multiprocessing import shared_memory\ndef f(): shared_memory.SharedMemory(create=True, size=99); return 1",
    "posix queue": LIBC + "def f(): assert libc.syscall(240, b'q', 0o102, 0o600, 0) >= 0; return 1",
    "memfd": "def f(): os.memfd_create('x'); return 1",
    "file handles": LIBC + "def f():\n h = (ctypes.c_char * 200)(); h[0] = 128; m = ctypes.c_int(); assert libc.syscall(303, -100, AT['canary'].encode(), h, ctypes.byref(m), 0) == 0; return 1",
    "terminal input": "import fcntl\ndef f(): fcntl.ioctl(0, 0x5412, b'x'); return 1",
    "inotify": LIBC + "def f(): assert libc.inotify_init() >= 0; return 1",
    "setuid": "def f(): os.setuid(0); return 1",
    "setgroups": "def f(): os.setgroups([]); return 1",
    # other processes
    "signal the parent": "import signal\ndef f(): os.kill(AT['parent'], signal.SIGURG); return 1",
    "signal the forker": "def f(): os.kill(os.getppid(), 9); os.kill(0, 9); return 1",
    "signal everybody": "def f(): os.kill(-1, 0); return 1",
    "signal the group": "def f(): os.killpg(AT['group'], 0); return 1",
    "signal the first process": "def f():\n for pid in range(1, 4):\n  if pid != os.getpid(): os.kill(pid, 0); return 1",
    "signal by a pipe": "import fcntl\ndef f():\n r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, AT['parent']); return 1",
    "signal of choice by a pipe": "import fcntl\ndef f():\n r, w = os.pipe(); fcntl.fcntl(r, 10, 9); return 1",
    "queue a signal": LIBC + "def f(): assert libc.sigqueue(AT['parent'], 0, 0) == 0; return 1",
    "limits of the parent": "import resource\ndef f(): resource.prlimit(AT['parent'], resource.RLIMIT_CORE, (0, 0)); return 1",
    "priority of the parent": "def f(): os.setpriority(os.PRIO_PROCESS, AT['parent'], 19); return 1",
    "cores of the parent": "def f(): os.sched_setaffinity(AT['parent'], {0}); return 1",
    "memory of the tester": "def f():\n for pid in {os.getppid(), os.getpid() - 1, 1, AT['parent']} - {os.getpid()}:\n  with contextlib.suppress(OSError):\n   open(f'/proc/{pid}/mem', 'r+b'); return 1",
    "own memory by a file": "def f(): open('/proc/self/mem', 'r+b'); return 1",
    "environment": f"def f(): assert {SECRET!r} in str(dict(os.environ)); return 1",
    "environment by a file": "def f(): return len(open('/proc/self/environ').read()) > 0 and 1",
    "environment of the parent": f"def f(): assert {SECRET!r} in open(f'/proc/{{AT[\"parent\"]}}/environ').read(); return 1",
    "all processes": "def f(): assert len([p for p in os.listdir('/proc') if p.isdecimal()]) > 1; return 1",
    # the network
    "tcp": "import socket\ndef f(): socket.create_connection(('127.0.0.1', AT['tcp']), 2).send(b'x'); return 1",
    "udp": "import socket\ndef f(): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', AT['udp'])); return 1",
    "listen": "import socket\ndef f(): socket.create_server(('127.0.0.1', 0)); return 1",
    "unix path": "import socket\ndef f(): socket.socket(socket.AF_UNIX).connect(AT['path']); return 1",
    "unix abstract": "import socket\ndef f(): socket.socket(socket.AF_UNIX).connect('\\0' + AT['abstract']); return 1",
    "unix by a pair": "import socket\ndef f():\n a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', AT['path']); return 1",
    "unix by a stream pair": "import socket\ndef f():\n a, b = socket.socketpair(); a.connect(AT['path']); return 1",
    "netlink": "import socket\ndef f(): socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); return 1",
    "packets": "import socket\ndef f(): socket.socket(socket.AF_PACKET, socket.SOCK_RAW); return 1",
    "vsock": "import socket\ndef f(): socket.socket(socket.AF_VSOCK); return 1",
    # files
    "read the canary": "def f(): return len(open(AT['canary']).read()) > 0 and 1",
    "read the canary by io": "import _io\ndef f(): return len(_io.FileIO(AT['canary']).read()) > 0 and 1",
    "list the folder": "def f(): os.listdir(AT['folder']); return 1",
    "passwords": "def f(): open('/etc/passwd'); return 1",
    "home": "def f(): os.listdir(os.path.expanduser('~root')); return 1",
    "working tree": "def f(): open(AT['tree'] + '/pyproject.toml'); return 1",
    "answers in site-packages": "def f():\n for p in sys.path:\n  with contextlib.suppress(OSError): open(p + '/pip/__init__.py'); return 1",
    "write /tmp": "def f(): open('/tmp/written-by-a-program', 'w'); return 1",
    "write next to the canary": "def f(): open(AT['folder'] + '/x', 'w'); return 1",
    "write to the canary": "def f(): open(AT['canary'], 'a').write('x'); return 1",
    "truncate the canary": "def f(): os.truncate(AT['canary'], 0); return 1",
    "truncate by opening": "def f(): os.open(AT['canary'], os.O_RDONLY | os.O_TRUNC); return 1",
    "delete the canary": "def f(): os.unlink(AT['canary']); return 1",
    "rename the canary": "def f(): os.rename(AT['canary'], 'mine'); return 1",
    "mode of the canary": "def f(): os.chmod(AT['canary'], 0o600); return 1",
    "mode by a descriptor": "def f(): open('x', 'w').close(); os.fchmod(os.open('x', os.O_RDONLY), 0o4777); return 1",
    "mode of the canary by a descriptor": "def f(): os.fchmod(os.open(AT['canary'], os.O_RDONLY), 0o4777); return 1",
    "mode of the interpreter's files": "def f(): os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o4777); return 1",
    "owner by a descriptor": "def f(): open('x', 'w').close(); os.fchown(os.open('x', os.O_RDONLY), os.getuid(), -1); return 1",
    "times by a descriptor": "def f(): open('x', 'w').close(); os.utime(os.open('x', os.O_RDONLY), (0, 0)); return 1",
    "attribute by a descriptor": "def f(): open('x', 'w').close(); os.setxattr(os.open('x', os.O_RDWR), 'user.x', b'y'); return 1",
    "flags of a file": "import fcntl\ndef f(): open('x', 'w').close(); fcntl.ioctl(os.open('x', os.O_RDONLY), 0x40086602, b'\\x10\\0\\0\\0\\0\\0\\0\\0'); return 1",
    "hint of a file": "import fcntl\ndef f(): open('x', 'w').close(); fcntl.fcntl(os.open('x', os.O_RDWR), 1036, bytes(8)); return 1",
    "lease": "import fcntl\ndef f(): fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK); return 1",
    "lock": "import fcntl\ndef f(): fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_EX); return 1",
    "times of the canary": "def f(): os.utime(AT['canary'], (0, 0)); return 1",
    "attribute of the canary": "def f(): os.setxattr(AT['canary'], 'user.x', b'y'); return 1",
    "symlink": "def f(): os.symlink(AT['canary'], 'link'); return len(open('link').read()) > 0 and 1",
    "symlink to write": "def f(): os.symlink(AT['folder'], 'link'); open('link/x', 'w'); return 1",
    "hard link": "def f(): os.link(AT['canary'], 'link'); return len(open('link').read()) > 0 and 1",
    "path descriptor": "def f():\n fd = os.open(AT['canary'], os.O_PATH); os.fchmod(fd, 0); return 1",
    "dots": "def f():\n for n in range(9):\n  with contextlib.suppress(OSError): open('../' * n + AT['canary'][1:]); return 1",
    "device": "def f(): os.mknod('x', 0o20666, os.makedev(1, 1)); return 1",
    "huge file": "def f():\n with open('x', 'wb') as file:\n  for _ in range(99): file.write(bytes(2**20)); file.flush()\n return 1",
    "locked folders": "def f():\n os.makedirs('a/b'); open('a/b/c', 'w').close(); os.mkdir('d', 0); os.mkdir('a/e', 0)\n os.umask(0o777); os.makedirs('g'); open('h', 'w')\n raise KeyError",
    "deep folders": "def f():\n for _ in range(3000): os.mkdir('d'); os.chdir('d')\n open('x', 'w'); raise KeyError",
    "odd names": "def f():\n open(b'\\xff\\n', 'w'); os.symlink('/', 'root'); os.symlink('loop', 'loop'); os.mkdir(' '); raise KeyError",
    # memory and time
    "memory hog": "def f():\n x = []\n while True: x.append(bytearray(2**24))",
    "mapped memory": "import mmap\ndef f(): mmap.mmap(-1, 2**33); return 1",
    "thread bomb": "import threading\nthreading.stack_size(65536)\ndef f():\n for _ in range(10**5): threading.Thread(target=time.sleep, args=(99,)).start()\n return 1",
    "recursion": "def f(): return f()",
    "recursion in C": "def f():\n sys.setrecursionlimit(10**9); x = []\n for _ in range(10**6): x = [x]\n return repr(x)",
    "segfault": "def f(): ctypes.string_at(0)",
}  # fmt: skip

ENDLESS = {
    "loop": "while True: pass",
    "sleep": "time.sleep(1000)",
    "ignored signals": "import signal\nfor s in (1, 2, 3, 13, 14, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "alarm": "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\nwhile True: time.sleep(9)",
    "stopped": "import signal\nos.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(1000)",
    "threads": "import _thread\n_thread.start_new_thread(lambda: [0 for _ in iter(int, 1)], ())\ntime.sleep(1000)",
    "forked": "while True:\n try: os.fork(); os.setsid()\n except OSError: time.sleep(0.01)",
    "caught": "while True:\n try: time.sleep(1000)\n except BaseException: pass",
    "swallowed": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(1000)",
}  # fmt: skip


@pytest.fixture
def there(monkeypatch):
    monkeypatch.setenv("LYNX_TEST_TOKEN", SECRET)
    with outside() as place:
        place.at |= {"group": os.getpgrp(), "tree": str(Path(__file__).parents[3])}
        yield place


def sources(kind, there):
    head = HEAD.format(at=json.dumps({key: value for key, value in there.at.items() if key != "secret"}))
    return [head + source for source in kind.values()]


def test_escapes(sandbox, there, leftovers):
    test = "assert f() == 1"
    programs = [Program(source=source, test=test, entry_point=None) for source in sources(ESCAPES, there)]
    verdicts = sandbox.run(programs, timeout_s=2.0)
    outcomes = dict(zip(ESCAPES, (it.reason for it in verdicts), strict=True))
    assert [name for name, it in zip(ESCAPES, verdicts, strict=True) if it.passed] == []
    tried = ("SyntaxError", "NameError", "TypeError", "AttributeError", "ModuleNotFoundError")
    assert not {name: reason for name, reason in outcomes.items() if reason.endswith(tried)}  # not for lack of skill
    assert there.reached() == {}
    assert leftovers() == []
    assert not os.path.exists("/tmp/written-by-a-program")


def test_timeouts(sandbox, there, leftovers):
    programs = [Program(source=source, test="", entry_point=None) for source in sources(ENDLESS, there)]
    verdicts = sandbox.run(programs, timeout_s=0.4)
    assert {it.reason for it in verdicts} == {"timeout"}
    assert leftovers() == []
