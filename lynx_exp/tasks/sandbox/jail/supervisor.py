"""The supervisor of one run: enters the jail, starts fork servers, hands out programs, collects verdicts.

On stdin it gets two messages: the plan (see `confine.Plan`), then the job with its programs. On stdout it writes one
JSON object with the verdicts and the job's token. Anything unexpected ends it with an error, never with a verdict.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import secrets
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

from . import namespaces, tester, wire
from .confine import Plan
from .forks import ANSWER, COMMAND, END, END_TESTER, START, ForkServer
from .kernel import die_with_parent
from .library_folders import check_readable, hold_folders

PRELOADED = """abc array bisect cmath collections collections.abc copy dataclasses datetime decimal enum fractions
functools hashlib heapq itertools json math numbers operator random re statistics string struct textwrap threading time
typing unicodedata encodings.idna"""
"""What most programs import: a fork has them for nothing."""

NUMERIC_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""For NumPy in candidates and in testers, which import it too as its values arrive: no process may start threads that
the limits forbid, and OpenBLAS interrupts the one that tries."""

MAX_REPORT = 4096
FORKS_ENDED = "a process that forks programs: "
"""How a line on stderr begins that says why everything else failed."""


NOT_STARTED = "not started"
"""How a verdict begins of a program for which the machine had no process or memory left."""


@dataclass(kw_only=True)
class Slot:
    """A fork server, and the program that it runs at the moment."""

    number: int
    control: socket.socket
    channel: socket.socket | None = None
    """To the tester, while there is one."""
    running: bool = False
    index: int = 0
    deadline: float = 0.0
    nonce: str = ""
    report: bytearray = field(default_factory=bytearray)
    timed_out: bool = False


def start_slot(number: int, plan: Plan, folder: str, inherited: list[socket.socket]) -> Slot:
    mine, its = socket.socketpair()
    if os.fork() == 0:
        status = 1
        try:
            for end in (*inherited, mine):
                end.close()
            os.closerange(0, 2)
            os.open(os.devnull, os.O_RDONLY)
            os.dup(0)
            die_with_parent()
            ForkServer(plan, number, folder, its).serve()
            status = 0
        except BaseException as error:
            with contextlib.suppress(BaseException):
                os.write(2, f"{FORKS_ENDED}{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    its.close()
    return Slot(number=number, control=mine)


class Run:
    def __init__(self, slots: list[Slot], programs: list[tester.ProgramEntry], timeout_s: float) -> None:
        self.slots, self.programs, self.timeout_s = slots, programs, timeout_s
        self.verdicts: list[tuple[bool, str]] = [(False, "not run")] * len(programs)
        self.selector = selectors.DefaultSelector()
        self.todo = iter(range(len(programs)))
        self.busy = 0

    def all(self) -> list[tuple[bool, str]]:
        """Verdicts in the order of the programs, at most one program at a time in each slot."""
        for slot in self.slots:
            self.selector.register(slot.control, selectors.EVENT_READ, (self.collect, slot))
            self.start_next(slot)
        while self.busy:
            deadlines = [slot.deadline for slot in self.slots if slot.running]
            patience = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            for key, _ in self.selector.select(patience):
                act, slot = key.data
                act(slot)
            now = time.monotonic()
            for slot in self.slots:
                if slot.running and slot.deadline <= now:
                    slot.timed_out = True
                    self.end(slot, lose_tester=True)
        return self.verdicts

    def start_next(self, slot: Slot) -> None:
        index = next(self.todo, None)
        if index is None:
            return
        self.busy += 1
        program = self.programs[index]
        timeout_s = program.get("timeout_s", self.timeout_s)
        requests, ask = os.pipe()
        listen, replies = os.pipe()
        handed = [requests, replies]
        if slot.channel is None:
            slot.channel, its = socket.socketpair()
            self.selector.register(slot.channel, selectors.EVENT_READ, (self.listen, slot))
            handed.append(its.detach())
        socket.send_fds(slot.control, [COMMAND.pack(START, timeout_s)], handed)
        slot.index, slot.nonce, slot.running = index, secrets.token_hex(16), True
        slot.report, slot.timed_out = bytearray(), False
        slot.deadline = time.monotonic() + timeout_s
        job = json.dumps({**program, "nonce": slot.nonce}).encode()
        with contextlib.suppress(OSError):  # a tester that is gone has nothing to report, which is noticed below
            socket.send_fds(slot.channel, [struct.pack(">I", len(job))], [ask, listen])
            slot.channel.sendall(job)
        for fd in (*handed, ask, listen):
            os.close(fd)

    def listen(self, slot: Slot) -> None:
        """A piece of the tester's report; two lines are all of it."""
        if slot.channel is None:
            return
        try:
            data = slot.channel.recv(MAX_REPORT)
        except OSError:
            data = b""
        slot.report += data
        if slot.report.count(b"\n") == 2:
            self.end(slot, lose_tester=False)
        elif not data or len(slot.report) > MAX_REPORT:
            self.end(slot, lose_tester=True)

    def end(self, slot: Slot, *, lose_tester: bool) -> None:
        """Have the candidate killed, and the tester if asked to; `collect` goes on once they are gone."""
        slot.running = False
        if lose_tester and slot.channel is not None:
            self.selector.unregister(slot.channel)
            slot.channel.close()
            slot.channel = None
        slot.control.sendall(COMMAND.pack(END_TESTER if lose_tester else END, 0.0))

    def collect(self, slot: Slot) -> None:
        answer = slot.control.recv(ANSWER.size)
        if len(answer) != ANSWER.size:
            raise RuntimeError("a process that forks programs ended")
        self.verdicts[slot.index] = conclude(slot, *ANSWER.unpack(answer))
        self.busy -= 1
        self.start_next(slot)


def conclude(slot: Slot, program_status: int, tester_status: int, not_started: int) -> tuple[bool, str]:
    """(passed, reason). RuntimeError if the program could not be confined in the first place."""
    if not_started:
        return False, f"{NOT_STARTED}: {os.strerror(not_started)}"
    lines = slot.report.decode(errors="replace").split("\n")
    kind, _, rest = (lines[-2] if len(lines) > 1 else "").partition(":")
    if slot.timed_out and (lines[0] == tester.READY or not lines[0]):
        return False, "timeout"
    if lines[0] != tester.READY:
        raise RuntimeError(rest or "a tester's process could not be confined")
    if kind == tester.PASSED and secrets.compare_digest(rest, slot.nonce):
        return True, "passed"
    if kind == tester.FAILED:
        return False, rest
    status = program_status if kind == tester.ENDED else tester_status
    ended = f"killed by signal {-status}" if status < 0 else f"exited with status {status}"
    return False, f"{ended} before the tests ended"


def read_message() -> bytes:
    """JSON from stdin."""
    return wire.receive(0, limit=2**32)


def hide(plan: Plan) -> None:
    """Let what is installed and may not be read be as good as not installed: rules that only grant leave its name in
    the folder, and an import that somebody expects to fail (of pyarrow, in pandas) would end in PermissionError."""
    allowed = sys.stdlib_module_names | {os.path.basename(path).partition(".")[0] for path in plan.unmasked}
    for folder in plan.library_path:
        with contextlib.suppress(OSError):  # nor does a program find anything in a folder that cannot be listed
            names = {entry.partition(".")[0] for entry in os.listdir(folder)}
            for name in filter(str.isidentifier, names - allowed):
                sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def main() -> None:
    die_with_parent()
    plan = Plan(**json.loads(read_message()))
    os.environ.clear()
    for name in NUMERIC_THREADS:
        os.putenv(name, "1")  # in the C library's environment only: Python's stays empty
    for name in PRELOADED.split():
        importlib.import_module(name)
    if plan.jail == "none" and plan.landlock != "none":
        hide(plan)
    folder = os.getcwd()
    if plan.jail == "namespaces":
        namespaces.enter(plan.readable, plan.masked, plan.unmasked, plan.devices)
    if plan.drop_user and os.geteuid() == 0:
        libraries = plan.unmasked
        if plan.jail == "none":  # the others show programs the same files elsewhere, in folders that all may enter
            libraries = hold_folders(plan)
        check_readable([*sys.path, *libraries])
    gc.collect()
    gc.freeze()
    slots: list[Slot] = []
    for number in range(plan.workers):
        slots.append(start_slot(number, plan, folder, [slot.control for slot in slots]))
    job = json.loads(read_message())  # only now: the fork servers know nothing of it
    verdicts = Run(slots, job["programs"], job["timeout_s"]).all()
    for slot in slots:
        slot.control.close()
    json.dump({"token": job["token"], "verdicts": verdicts}, sys.stdout)
