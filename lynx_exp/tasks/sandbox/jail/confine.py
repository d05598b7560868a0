"""What a process does to itself, in this order, before it runs a line that it was sent. Nothing of it can be undone."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
from dataclasses import dataclass, field

from . import landlock, seccomp
from .kernel import LINUX, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, die_with_parent, drop_capabilities, prctl

UNPRIVILEGED_UIDS = (1_900_000_000, 65_534)
"""What root becomes. The first is counted up by slot: programs that run side by side cannot signal each other."""

OPEN_FILES = 64
FILE_BYTES = 2**20
THREADS = 64
MAX_FD = 65_536
"""Descriptors from here on cannot be open: these processes have a handful."""
FIRST_FOLDER_FD = 32
"""Those of `library_folders` have the same numbers in all processes: their names are paths that modules remember."""


@dataclass(kw_only=True)
class Plan:
    """The parts of a tier, and the limits of a run, as the supervisor is told them."""

    jail: str
    """`bubblewrap`: already inside; `namespaces`: to be entered; `none`."""
    program_namespaces: bool
    """Whether each program gets a process namespace and a file system of its own."""
    landlock: str
    """`required`; `if there`; `none`."""
    seccomp: bool
    limits: bool
    drop_user: bool
    """Whether root becomes an unprivileged user, and capabilities are given up."""
    one_process: bool
    """Whether the user's process limit stands in for the filter: no process and no thread beyond the first."""
    memory_mib: int
    workers: int
    readable: list[str] = field(default_factory=list)
    """Files and folders of the interpreter, and what it needs."""
    listable: list[str] = field(default_factory=list)
    """Folders of which the names may be read, but not the files."""
    masked: list[str] = field(default_factory=list)
    unmasked: list[str] = field(default_factory=list)
    """Folders that are hidden although they lie in readable ones, and what of them is shown nevertheless."""
    devices: list[str] = field(default_factory=list)
    library_path: list[str] = field(default_factory=list)
    folder_fds: int = 0
    """How many descriptors lead to folders of libraries, from FIRST_FOLDER_FD on. The supervisor's to say."""


def isolate_descriptors(*kept: int, folder_fds: int) -> list[int]:
    """Own session; /dev/null for 0, 1 and 2; then `kept`, from 3 on; all others closed but those that lead to folders
    of libraries. The new numbers of `kept`."""
    os.setsid()
    high = [os.dup2(fd, 200 + position, inheritable=False) for position, fd in enumerate(kept)]
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    numbers = [os.dup2(fd, 3 + position, inheritable=False) for position, fd in enumerate(high)]
    os.closerange(3 + len(kept), FIRST_FOLDER_FD)
    os.closerange(FIRST_FOLDER_FD + folder_fds, MAX_FD)
    return numbers


def drop_privileges(slot: int) -> None:
    """Become an unprivileged user if root; give up what a user namespace granted. OSError if it cannot be done."""
    if os.geteuid() == 0:
        for uid in (UNPRIVILEGED_UIDS[0] + slot, UNPRIVILEGED_UIDS[1]):
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                break
            except OSError:
                continue  # no such id is mapped: root of a user namespace only
    if LINUX:
        drop_capabilities()


def set_limits(plan: Plan, cpu_s: float, threads: int | None) -> None:
    limits = [
        (resource.RLIMIT_CPU, resource.RLIM_INFINITY if math.isinf(cpu_s) else math.ceil(cpu_s)),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ]
    if sys.platform == "linux":  # elsewhere it is refused or ignored
        limits.append((resource.RLIMIT_AS, plan.memory_mib * 2**20))
    if threads is not None:
        limits.append((resource.RLIMIT_NPROC, threads))
    for what, value in limits:
        hard = resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            value = hard if value == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


class Confinement:
    """Everything that a plan asks for, prepared once for many processes."""

    def __init__(self, plan: Plan, own_folder: str | None) -> None:
        self.plan = plan
        self.threads = thread_limit(plan)
        self.rules: int | None = None
        if plan.landlock == "required" or (plan.landlock == "if there" and landlock.version()):
            readable = plan.readable + plan.unmasked
            self.rules = landlock.ruleset(readable, plan.listable, own_folder, plan.devices)
        self.filter = seccomp.Filter(os.uname().machine) if plan.seccomp else None

    def enter(self, slot: int, cpu_s: float, *kept: int) -> list[int]:
        """Confine this process, from the outside in: the filter last, because it forbids the rest.

        `kept` stay open under the numbers that are returned; everything else is closed.
        """
        rules = [] if self.rules is None else [self.rules]
        numbers = isolate_descriptors(*kept, *rules, folder_fds=self.plan.folder_fds)
        if self.plan.drop_user:
            drop_privileges(slot)
        die_with_parent()  # after the change of user, which would undo it
        if LINUX:
            prctl(PR_SET_DUMPABLE, 0)
            prctl(PR_SET_NO_NEW_PRIVS, 1)
        if rules:
            landlock.enforce(numbers.pop())
        if self.plan.limits:
            set_limits(self.plan, cpu_s, self.threads)
        if self.filter is not None:
            self.filter.install()
        return numbers

    def close(self) -> None:
        if self.rules is not None:
            os.close(self.rules)


def thread_limit(plan: Plan) -> int | None:
    """The value for RLIMIT_NPROC, which counts processes and threads of a user, wherever that user has them."""
    if plan.one_process:
        return 0
    if plan.drop_user and os.geteuid() == 0:
        return THREADS  # a user of nothing else
    return user_threads() + THREADS * plan.workers


def user_threads() -> int:
    """How many threads the user of this process has now; in a namespace they are few, and count apart."""
    total = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdecimal():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.geteuid():
                    total += len(os.listdir(f"/proc/{name}/task"))
    return total
