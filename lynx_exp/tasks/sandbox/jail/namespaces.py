"""Namespaces: a file system of few read-only folders, no network, processes that see nothing outside.

The supervisor enters them once; each program gets a process namespace and an empty folder of its own on top.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence

from .kernel import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    SYS_PIDFD_OPEN,
    call,
    die_with_parent,
    has_capability,
    syscall,
)

CAP_SYS_ADMIN = 21
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x4_0000
MNT_DETACH = 2
SYS_MOUNT_SETATTR = 442
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
AT_FDCWD = -100
READ_ONLY_NO_SUID = 0x1 | 0x2

FOR_PROGRAMS = "/program"
OWN_FOLDER = "/program/files"
"""Where each program has its own file system. Not /tmp: with Landlock alone there is none to write to either."""
OWN_BYTES = 32 * 2**20
OWN_FILES = 2048


class MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace")]


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word if word is None else word.encode() for word in (source, target, kind)]
    call("mount", *words, ctypes.c_ulong(flags), options if options is None else options.encode())


def make_read_only(path: str) -> None:
    """`path` and all mounts below it, whatever flags they have already."""
    attributes = MountAttributes(READ_ONLY_NO_SUID, 0, 0, 0)
    target = ctypes.c_char_p(path.encode())
    syscall(SYS_MOUNT_SETATTR, AT_FDCWD, target, AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes))


def enter(readable: Sequence[str], masked: Sequence[str], unmasked: Sequence[str], devices: Sequence[str]) -> None:
    """Leave for new namespaces of every kind; what is left of the files are `readable` less `masked`, and `unmasked`.

    Returns in a child that is the first process of its namespace; the caller's own process waits for it and ends as it
    ended. OSError if the kernel refuses any part.
    """
    user, group = os.geteuid(), os.getegid()
    kinds = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if has_capability(CAP_SYS_ADMIN):
        call("unshare", kinds)
    else:
        call("unshare", kinds | CLONE_NEWUSER)
        maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for name, content in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)
    pid = os.fork()
    if pid:
        os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    die_with_parent()
    build_root(readable, masked, unmasked, devices)


def build_root(readable: Sequence[str], masked: Sequence[str], unmasked: Sequence[str], devices: Sequence[str]) -> None:
    """Make a root of bind mounts on top of the current folder (which is empty), and make it the root."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = os.getcwd()
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={2**20},nr_inodes={OWN_FILES},mode=0755")
    for path in (*readable, *devices):
        if os.path.exists(path):
            bind(path, root + path)
    for path in masked:
        if os.path.isdir(root + path):
            mount("tmpfs", root + path, "tmpfs", MS_NOSUID | MS_NODEV, f"size={2**16},mode=0755")
    for path in unmasked:
        bind(path, root + path)
    os.makedirs(root + OWN_FOLDER)
    os.chdir(root)
    dot = ctypes.c_char_p(b".")
    syscall(SYS_PIVOT_ROOT[os.uname().machine], dot, dot)
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    make_read_only("/")


def bind(path: str, target: str) -> None:
    """`path` at `target`, links resolved by the kernel; a mount is as writable as before until the end."""
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(path, target, None, MS_BIND | MS_REC)


class ProgramNamespaces:
    """What a program gets on top: it and its tester are alone in a process namespace, with an empty folder."""

    KINDS = CLONE_NEWPID | CLONE_NEWNS

    def __init__(self) -> None:
        self.home = syscall(SYS_PIDFD_OPEN, os.getpid(), 0)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """For the children that are forked meanwhile, and for the mounts of this process."""
        call("unshare", self.KINDS)
        try:
            options = f"size={OWN_BYTES},nr_inodes={OWN_FILES},mode=0777"
            mount("tmpfs", OWN_FOLDER, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """RuntimeError if that fails, for whatever reason: what comes next would share the last program's folder."""
        try:
            call("setns", self.home, self.KINDS)
        except OSError as error:
            raise RuntimeError(f"no way back from a program's namespaces: {error}") from error
