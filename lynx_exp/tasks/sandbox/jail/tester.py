"""The process that runs the trusted tests of programs, one after the other, and says how each ended.

It never runs a line of a candidate. Names that a test uses without defining them are the candidate's, seen through
`remote.Link`. What one test leaves behind in this process, another may find: tests are trusted.
"""

from __future__ import annotations

import ast
import builtins
import gc
import importlib
import json
import os
import random
import socket
import struct
import sys
from typing import Any

from . import wire
from .objects import Untransportable, is_remote
from .remote import BadReply, Link

READY, PASSED, FAILED, ENDED, BROKEN = "ready", "passed", "failed", "ended", "broken"
TRANSPORT = "transport"
"""How a verdict begins that could not be had, because a value could not cross between the processes."""
MAX_REASON = 300
TRUSTED_MODULES = sys.stdlib_module_names | {"numpy"}
"""Modules that a test may use without importing them, if the candidate did: the tester's own are used instead."""


class Names(dict[str, Any]):
    """The tests' global names: their own, else builtins, else what the candidate calls so."""

    def __init__(self, link: Link) -> None:
        super().__init__({"__name__": "test", "__builtins__": builtins})
        self.link = link

    def show_types(self) -> None:
        """`type(x)` of the candidate's object is its class, in tests that ask for it."""
        self["type"] = seen_type(self.link)

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)  # the interpreter looks there next
        answer = self.link.ask("name", name)
        if answer[0] == "absent":
            raise KeyError(name)
        if answer[0] == "module":
            if answer[1] in TRUSTED_MODULES:
                return importlib.import_module(answer[1])
            return answer[2]
        return self.link.value(answer)


def seen_type(link: Link) -> Any:
    class SeenType(type(type)):  # type: ignore[misc]
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and is_remote(args[0]):
                return link.do("type", args[0])
            return type(*args, **kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, type)

        def __eq__(cls, other: object) -> bool:
            return other is type or other is cls

        __hash__ = type.__hash__

    return SeenType("type", (type,), {})


def under_test(test: str, link: Link) -> dict[str, Any]:
    """The candidate's own where it has the name of a builtin and is what is tested: the test asks for nothing else of
    the candidate's. Beside another name (`abs(f(2) - 3) < 1e-6`) a builtin is the builtin, whatever the candidate says.
    """
    tree = ast.parse(test)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    stored |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    stored |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    aliases = (
        alias for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names
    )
    stored |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
    free = {node.id for node in names} - stored
    if not free or any(not hasattr(builtins, name) for name in free):
        return {}
    found = {name: answer for name in sorted(free) if (answer := link.ask("name", name))[0] == "value"}
    if len(found) > 1:
        raise link.refused("more than one builtin that the program defines anew")
    return {name: link.value(answer) for name, answer in found.items()}


def explain(error: BaseException) -> str:
    """What was raised, without its message; never the word "passed" alone."""
    return f"raised {type(error).__name__}"


def is_stub(function: Any) -> bool:
    """Whether a function has no body but a docstring, `...` or `pass`: what a prompt leaves to the candidate."""
    return all(
        isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        for line in function.body
    )


def run_prelude(prelude: str, entry_point: str | None, names: Names) -> None:
    """Define the helpers of `prelude`, but neither the entry point nor stubs nor classes: those are the candidate's."""
    tree = ast.parse(prelude)
    exec(compile(tree, "<prelude>", "exec"), names)
    functions = [line for line in tree.body if isinstance(line, (ast.FunctionDef, ast.AsyncFunctionDef))]
    classes = {line.name for line in tree.body if isinstance(line, ast.ClassDef)}
    for name in {entry_point} | classes | {function.name for function in functions if is_stub(function)}:
        if name is not None and name in names:
            del names[name]


def judge(job: dict[str, Any], link: Link) -> str:
    """Run program and tests; '' if every assertion held, else why not. Raises BadReply, wire.Closed."""
    names = Names(link)
    try:
        run_prelude(job["prelude"], job["entry_point"], names)
    except Exception as error:
        return f"the prelude {explain(error)}"
    try:
        link.ask("run", job["source"])
        check = None
        if (entry_point := job["entry_point"]) is not None:
            answer = link.ask("name", entry_point)
            if answer[0] == "absent":
                return "the entry point is not defined"
            candidate = answer[2] if answer[0] == "module" else link.value(answer)
            names[entry_point] = candidate
        else:
            names |= under_test(job["test"], link)
        if "type(" in job["test"]:
            names.show_types()
        exec(compile(job["test"], "<test>", "exec"), names)
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


def verdict(job: dict[str, Any], link: Link) -> str:
    """The report to the supervisor. The nonce goes out only behind the last assertion."""
    try:
        failure = judge(job, link)
    except BadReply as bad:
        failure = str(bad)
    except wire.Closed:
        return ENDED  # how the candidate's process ended, its parent knows
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


def judge_one(channel: int, job: dict[str, Any], requests: int, replies: int) -> None:
    first = os.read(replies, MAX_REASON)  # before the candidate's process was sent a line to run
    if first != wire.READY:
        report(channel, BROKEN)
        report(channel, f"{BROKEN}:a program could not be confined: {first.decode(errors='replace')}")
        return
    report(channel, READY)
    random.seed(0)
    report(channel, verdict(job, Link(requests, replies)))
