"""The system call filter: an allowlist, installed by a process on itself, for good and for all its threads.

A program with it starts no process, opens no socket but a connected pair, signals nobody but itself, and changes
nobody's limits, priorities or namespaces. Another architecture's calls (32 bit, x32) kill it: their numbers mean
something else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from .kernel import PR_SET_NO_NEW_PRIVS, call, prctl
from .syscalls import ARCHITECTURES, HARMLESS, JUDGED, NEWEST, numbers

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2

LOAD, JUMP_EQUAL, JUMP_ABOVE, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
ALLOW, KILL, ERROR = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16

CLONE_THREAD = 0x0001_0000
NEW_NAMESPACES = 0x7E02_0000
AF_UNIX, SOCK_STREAM, SOCK_TYPE_MASK = 1, 1, 0xF
O_TRUNC, O_ACCMODE = 0o1000, 0o3
DESCRIPTOR_REQUESTS = (0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 36, 37, 38, 1030, 1031, 1032)
"""fcntl: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, locks of ranges (for writing only where one may write), F_GETOWN,
F_GETSIG, F_DUPFD_CLOEXEC, sizes of pipes. Not: F_SETOWN, F_SETSIG, F_SETLEASE, F_NOTIFY (ways to have the kernel signal
another process), nor hints and seals, which change the file itself."""
RENAMES = (0, 1, 2)
"""renameat2: RENAME_NOREPLACE, RENAME_EXCHANGE. Not: RENAME_WHITEOUT, which makes a device."""
TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""ioctl: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
NAMES_OF_THREADS_AND_MEMORY = (15, 16, 0x5356_4D41)
"""prctl: PR_SET_NAME, PR_GET_NAME, PR_SET_VMA. Not: PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP."""

PLACEHOLDERS = 0x7FFF_0001, 0x7FFF_0002
"""Process ids that no process has, to find where in the filter they stand."""

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


class SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def low(argument: int) -> Instruction:
    """Load the low half of a call's argument: all that the kernel itself reads of an int."""
    return LOAD, 0, 0, ARGUMENTS + 8 * argument


def high(argument: int) -> Instruction:
    return LOAD, 0, 0, ARGUMENTS + 8 * argument + 4


def give(verdict: int) -> Instruction:
    return RETURN, 0, 0, verdict


def refuse(number: int) -> Instruction:
    return give(ERROR | number)


def one_of(argument: int, values: tuple[int, ...], *, otherwise: int = errno.EPERM) -> list[Instruction]:
    """Allowed if the argument is one of `values`."""
    tests = [(JUMP_EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [low(argument), *tests, refuse(otherwise), give(ALLOW)]


def opening(argument: int) -> list[Instruction]:
    """Truncating needs a descriptor for writing: Landlock before its third version does not see the other ways."""
    return [
        low(argument),
        (AND, 0, 0, O_TRUNC | O_ACCMODE),
        (JUMP_EQUAL, 2, 0, O_TRUNC),
        (JUMP_EQUAL, 1, 0, O_TRUNC | O_ACCMODE),
        give(ALLOW),
        refuse(errno.EPERM),
    ]


def judged(pid: int) -> dict[str, list[Instruction]]:
    """What happens to each of the calls that are judged by their arguments; `pid` is the only one to be signalled."""
    return {
        "open": opening(1),
        "creat": [give(ALLOW)],
        "openat": opening(2),
        "openat2": [refuse(errno.ENOSYS)],  # its flags lie in memory, where no filter can look
        "kill": one_of(0, (pid,)),
        "tgkill": one_of(0, (pid,)),
        "clone": [
            low(0),
            (JUMP_ANY_BIT, 2, 0, NEW_NAMESPACES),
            (JUMP_ANY_BIT, 2, 0, CLONE_THREAD),
            refuse(errno.EAGAIN),
            refuse(errno.EPERM),
            give(ALLOW),
        ],
        "renameat2": one_of(4, RENAMES),
        "clone3": [refuse(errno.ENOSYS)],  # likewise; C libraries fall back to clone
        "fork": [refuse(errno.EAGAIN)],
        "vfork": [refuse(errno.EAGAIN)],
        "socketpair": [  # asyncio needs one; a pair of streams can send nowhere else
            low(0),
            (JUMP_EQUAL, 0, 3, AF_UNIX),
            low(1),
            (AND, 0, 0, SOCK_TYPE_MASK),
            (JUMP_EQUAL, 1, 0, SOCK_STREAM),
            refuse(errno.EPERM),
            give(ALLOW),
        ],
        "sendto": [low(4), (JUMP_EQUAL, 0, 2, 0), high(4), (JUMP_EQUAL, 1, 0, 0), refuse(errno.EPERM), give(ALLOW)],
        "fcntl": one_of(1, DESCRIPTOR_REQUESTS),
        "ioctl": one_of(1, TERMINAL_QUESTIONS),
        "prctl": one_of(0, NAMES_OF_THREADS_AND_MEMORY),
        "prlimit64": one_of(0, (0, pid)),
    }


class Filter:
    """The filter of a machine; built once, because a forked process should find it ready.

    KeyError for a machine whose numbers are not known.
    """

    def __init__(self, machine: str) -> None:
        first, second = (build(pid, machine) for pid in PLACEHOLDERS)
        self.code = first
        self.places = [at for at in range(0, len(first), 8) if first[at : at + 8] != second[at : at + 8]]

    def for_process(self, pid: int) -> bytes:
        """The filter of the process `pid`, as the kernel takes it."""
        code = bytearray(self.code)
        for place in self.places:
            struct.pack_into("I", code, place + 4, pid)
        return bytes(code)

    def install(self) -> None:
        """Filter this process's calls from now on. OSError if the kernel refuses."""
        code = self.for_process(os.getpid())
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        program = SockFprog(len(code) // 8, code)
        zero = ctypes.c_ulong(0)
        call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(program), zero, zero)


def build(pid: int, machine: str) -> bytes:
    _, audit = ARCHITECTURES[machine]
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, audit),
        give(KILL),
        (LOAD, 0, 0, NUMBER),
        (JUMP_ABOVE, 0, 1, 0x3FFF_FFFF),  # x32
        give(KILL),
        (JUMP_ABOVE, 0, 1, NEWEST),
        refuse(errno.ENOSYS),
    ]
    for number in numbers(HARMLESS, machine).values():
        program += [(JUMP_EQUAL, 0, 1, number), give(ALLOW)]
    names = numbers(JUDGED, machine)
    for name, instructions in judged(pid).items():
        if name in names:
            program += [(JUMP_EQUAL, 0, len(instructions), names[name]), *instructions]
    program.append(refuse(errno.EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
