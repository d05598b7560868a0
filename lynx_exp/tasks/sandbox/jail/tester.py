"""The process that runs the trusted tests of programs, one after the other, and says how each ended.

It never runs a line of a candidate. Names that a test uses without defining them are the candidate's, seen through
`remote.Link`. What one test leaves behind in this process, another may find: tests are trusted.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import random
import socket
import struct
import sys
from typing import NotRequired, TypedDict

from . import wire
from .names import ABSENT, Names
from .objects import Untransportable
from .remote import BadReply, Link
from .side_effects import harmless_bodies, why_it_may_differ

READY, PASSED, FAILED, ENDED, BROKEN = "ready", "passed", "failed", "ended", "broken"
TRANSPORT = "transport"
"""How a verdict begins that could not be had, because a value could not cross between the processes."""
MAX_REASON = 300
FOR_CERTAIN = "malformed reply", "the entry point is not defined"


class ProgramEntry(TypedDict):
    """A program as the supervisor is told it; `lynx_exp.tasks.sandbox.program.Program` says what the fields mean."""

    source: str
    test: str
    entry_point: str | None
    prelude: str
    timeout_s: NotRequired[float]


class Job(ProgramEntry):
    """A program to be judged."""

    nonce: str
    """What only a tester that has passed it may say."""


def explain(error: BaseException) -> str:
    """What was raised, without its message; never the word "passed" alone."""
    return f"raised {type(error).__name__}"


def is_stub(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function has no body but a docstring, `...` or `pass`: what a prompt leaves to the candidate."""
    return all(
        isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in function.body
    )


def run_prelude(prelude: str, entry_point: str | None, names: Names) -> None:
    """Define the helpers of `prelude`, but neither the entry point nor stubs nor classes: those are the candidate's."""
    tree = ast.parse(prelude)
    exec(compile(tree, "<prelude>", "exec", dont_inherit=True), names)
    functions = [line for line in tree.body if isinstance(line, (ast.FunctionDef, ast.AsyncFunctionDef))]
    classes = {line.name for line in tree.body if isinstance(line, ast.ClassDef)}
    for name in {entry_point} | classes | {function.name for function in functions if is_stub(function)}:
        if name is not None and name in names:
            del names[name]


def judge(job: Job, link: Link) -> str:
    """Run program and tests; '' if every assertion held, else why not. Raises BadReply, wire.Closed."""
    names = Names(link, job["test"], job["entry_point"])
    link.stops = "StopIteration" in job["test"]
    link.signatures = "signature" in job["source"] or "getfullargspec" in job["source"]
    try:
        run_prelude(job["prelude"], job["entry_point"], names)
    except Exception as error:
        return f"the prelude {explain(error)}"
    try:
        link.ask("run", job["source"])
        check = None
        if (entry_point := job["entry_point"]) is not None:
            candidate = names.of_candidate(entry_point, tested=True)
            if candidate is ABSENT:
                return "the entry point is not defined"
            names[entry_point] = candidate
        else:
            names.under_test()
        if "type(" in job["test"]:
            names.show_types()
        link.leaves_nothing_out = harmless_bodies(names.tree, names)
        exec(compile(job["test"], "<test>", "exec", dont_inherit=True), names)
        if entry_point is not None:
            check = dict.__getitem__(names, "check")  # the test's own, never the candidate's
            check(candidate)
    except (BadReply, wire.Closed):
        raise
    except Untransportable as why:
        link.refused(str(why))
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures like any other
        return explain(error)
    return ""


def verdict(job: Job, link: Link) -> str:
    """The report to the supervisor. The nonce goes out only behind the last assertion."""
    try:
        failure = judge(job, link)
    except BadReply as bad:
        failure = str(bad)
    except wire.Closed:
        return ENDED  # how the candidate's process ended, its parent knows
    if failure and not link.untransportable and failure not in FOR_CERTAIN:
        link.untransportable = why_it_may_differ(job["test"], job["source"], failure, link)
    if link.untransportable:
        failure = f"{TRANSPORT}: {link.untransportable}"
    return f"{FAILED}:{failure}" if failure else f"{PASSED}:{job['nonce']}"


def report(channel: int, text: str) -> None:
    line = text.encode(errors="replace").replace(b"\n", b" ")[:MAX_REASON] + b"\n"
    while line:
        line = line[os.write(channel, line) :]


def run(channel: int, library_path: list[str]) -> None:
    """Confined by now: judge one program after the other. A job comes with the two pipes to its candidate."""
    sys.path.extend(library_path)
    gc.freeze()  # what is shared with the fork server stays shared
    jobs = socket.socket(fileno=channel)
    while True:
        head, pipes, _, _ = socket.recv_fds(jobs, 4, 2)
        if not head:
            return
        (length,) = struct.unpack(">I", head + wire.read_exactly(channel, 4 - len(head)))
        job = json.loads(wire.read_exactly(channel, length))
        judge_one(channel, job, *pipes)
        for pipe in pipes:
            os.close(pipe)


def judge_one(channel: int, job: Job, requests: int, replies: int) -> None:
    first = os.read(replies, MAX_REASON)  # before the candidate's process was sent a line to run
    if first != wire.READY:
        report(channel, BROKEN)
        report(channel, f"{BROKEN}:a program could not be confined: {first.decode(errors='replace')}")
        return
    report(channel, READY)
    random.seed(0)
    report(channel, verdict(job, Link(requests, replies)))
