"""A fork server: one per program that may run at a time. It knows no source, no test and no nonce.

It was forked before the supervisor read any program, so that nothing of them is in the memory that it hands on. For
each program it forks a candidate, and a tester whenever the last one was lost; it kills and buries them.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import socket
import struct
import traceback
from collections.abc import Callable

from . import candidate, namespaces, tester
from .confine import Confinement, Plan
from .emptied_folders import OwnFolder
from .namespaces import ProgramNamespaces

START, END, END_TESTER = b"S", b"E", b"T"
COMMAND = struct.Struct("cd")
"""Command, and the program's time in seconds."""
ANSWER = struct.Struct("iii")
"""How the candidate ended, and the tester: exit status, or minus the signal; 0 for a tester that was left alone. Last
the number of the error for which they could not be started, or 0."""
EXHAUSTED = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
"""What a start may fail of on a busy machine: processes, memory, descriptors. Any other error is the tier's own."""


class ForkServer:
    def __init__(self, plan: Plan, slot: int, folder: str, control: socket.socket) -> None:
        self.plan, self.slot, self.control = plan, slot, control
        self.namespaces = ProgramNamespaces() if plan.program_namespaces else None
        self.folder = None if self.namespaces else OwnFolder(folder, str(slot))
        own = self.folder.path if self.folder else namespaces.FOR_PROGRAMS
        self.for_candidates, self.for_testers = Confinement(plan, own), Confinement(plan, None)
        self.candidate: int | None = None
        self.tester: int | None = None
        self.not_started = 0

    def serve(self) -> None:
        """Until the supervisor closes the control socket; then nothing is left running."""
        while True:
            message, descriptors, _, _ = socket.recv_fds(self.control, COMMAND.size, 3)
            if not message:
                self.end_candidate()
                self.end_tester()
                return
            command, timeout_s = COMMAND.unpack(message)
            if command == START:
                self.not_started = self.try_to_start(timeout_s, *descriptors)
                for fd in descriptors:
                    os.close(fd)
            else:
                status = self.end_candidate()
                tester_status = self.end_tester() if command == END_TESTER else 0
                self.control.sendall(ANSWER.pack(status, tester_status, self.not_started))

    def try_to_start(self, timeout_s: float, *descriptors: int) -> int:
        """0, or the error for which one program has no verdict: the server is there for the next."""
        try:
            self.start(timeout_s, *descriptors)
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            return error.errno
        return 0

    def start(self, timeout_s: float, requests: int, replies: int, channel: int | None = None) -> None:
        """A candidate at the given pipes, and a tester at `channel` if the last one is no more."""
        if channel is not None:
            self.tester = self.fork(lambda: self.be_tester(channel))
        with self.namespaces.entered() if self.namespaces else contextlib.nullcontext():
            self.candidate = self.fork(lambda: self.be_candidate(requests, replies, timeout_s))

    def fork(self, be: Callable[[], None]) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            be()
            status = 0
        except BaseException:
            with contextlib.suppress(BaseException):
                os.write(2, traceback.format_exc().encode())  # the supervisor's, until it is closed; then nobody's
        finally:
            os._exit(status)

    def be_tester(self, channel: int) -> None:
        os.chdir("/")
        [channel] = self.for_testers.enter(self.slot, math.inf, channel)
        tester.run(channel, self.plan.library_path)

    def be_candidate(self, requests: int, replies: int, timeout_s: float) -> None:
        try:
            os.chdir(self.folder.path if self.folder else namespaces.OWN_FOLDER)
            requests, replies = self.for_candidates.enter(self.slot, timeout_s + 1.0, requests, replies)
        except Exception as error:
            for fd in (replies, 4):  # before and after it got its new number
                with contextlib.suppress(OSError):
                    os.write(fd, f"{type(error).__name__}: {error}".encode())
            raise
        candidate.run(requests, replies, self.plan.library_path)

    def end_candidate(self) -> int:
        pid, self.candidate = self.candidate, None
        status = end(pid)
        if self.folder and not self.folder.empty():
            self.for_candidates.close()
            self.for_candidates = Confinement(self.plan, self.folder.path)
        return status

    def end_tester(self) -> int:
        pid, self.tester = self.tester, None
        return end(pid)


def end(pid: int | None) -> int:
    """Kill a child, wait for it; how it ended. Until it is waited for, no other process can have its number."""
    if pid is None:
        return 0
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
