"""Calls into the C library and the kernel that Python 3.11 has no names for. Failures raise OSError."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LINUX = sys.platform == "linux"

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

SYS_PIDFD_OPEN = 434  # the same on every architecture, like all calls since Linux 5.1
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION_3 = 0x2008_0522


def call(name: str, *args: object) -> int:
    """`name(*args)` of the C library; OSError if it says -1."""
    result = getattr(LIBC, name)(*args)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(number: int, *args: object) -> int:
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    return call("syscall", ctypes.c_long(number), *wide)


def prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    call("prctl", option, ctypes.c_ulong(value), zero, zero, zero)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; elsewhere than on Linux the limits remain."""
    if LINUX:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def has_capability(number: int) -> bool:
    """Whether this process holds a capability over its own user namespace."""
    try:
        with open("/proc/self/status") as status:
            bits = next(line for line in status if line.startswith("CapEff"))
    except (OSError, StopIteration):
        return False
    return bool(int(bits.split()[1], 16) >> number & 1)


def drop_capabilities() -> None:
    """Give up every capability for good: the caller forbids gaining privileges as well."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    syscall(SYS_CAPSET[os.uname().machine], header, (ctypes.c_uint32 * 6)())
