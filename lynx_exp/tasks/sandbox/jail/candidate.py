"""The process that runs a candidate's code: answers the tester's questions until it is killed.

Whatever is in this process belongs to the candidate, this module included: it may answer anything, and all that it can
reach of the tester is what the tester decodes.
"""

from __future__ import annotations

import copy
import dis
import inspect
import math
import operator
import os
import random
import sys
import threading
import types
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, TypeAlias

from . import modes, wire
from .codec import MUTABLE, CodecError, Reference, decode, encode
from .described import Describer, acyclic, library_name, operators
from .shared_containers import Shared, held
from .values import Value

if TYPE_CHECKING:
    import asyncio

MODULE = "program"
FRAMES_OF_THIS_MODULE = 20
Result: TypeAlias = tuple[str, object]
"""Of which kind an answer is, and what it is."""


class Absent(Exception):
    """The candidate has no such name."""


class Server:
    """Answers questions, and asks the tester back for its functions, from any thread.

    `pending` holds the questions that are not answered and the calls to the tester that have not returned, the last on
    top. Only the thread whose call is on top reads; any may call back while a question is on top; an answer waits until
    its question is. So what is sent and read is in the order of one thread, whatever threads there are.
    """

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.turn = threading.Condition()
        self.pending: list[tuple[bool, object]] = []
        """Whether it is a question, and which."""
        self.describer = Describer(self.call_back)
        self.shared = Shared()
        self.module = types.ModuleType(MODULE)
        self.broken = ""
        """Why what both sides share can no longer be told."""

    def serve(self) -> None:
        while True:
            self.respond(wire.receive(self.requests))

    def respond(self, message: bytes) -> None:
        """Answer a question, or take over what the tester has changed."""
        if message[:1] == wire.CHANGES:
            self.take_over(message)
            return
        mine = object()
        arguments: list[object] = []
        box: list[Value] = []
        first = self.describer.first = {}
        with self.turn:
            self.pending.append((True, mine))
            self.turn.notify_all()
        question: list[object] = []
        try:
            question += decode(message, self.resolve, arguments, 1)
            kind, result = getattr(self, f"on_{question[0]}")(*question[1:])
            box.append(result)
            del result
        except wire.Closed:
            os._exit(1)
        except Absent:
            kind = "absent"
            box.append(None)
        except BaseException as error:  # SystemExit and KeyboardInterrupt are failures like any other
            kind = "untransportable" if isinstance(error, CodecError) else "raised"
            box.append(str(error) if kind != "raised" else error)
            if not question:
                arguments.clear()  # some are not finished, and the answer names none
        with self.turn:
            while self.pending[-1][1] is not mine:
                self.turn.wait()
            self.tell_changes()
            self.describer.chained = kind == "raised" and acyclic(box[0])
            wire.send(self.replies, wire.ANSWER + self.answer(kind, box, message, question, arguments, first))
            self.pending.pop()
            self.turn.notify_all()

    def resolve(self, tag: bytes, told: int | list[object] | None) -> object:
        """What a reference of the tester's stands for: a container that both hold, else what `describer` knows."""
        if tag == b"w" and isinstance(told, int):
            return self.shared.containers[told]
        return self.describer.resolve(tag, told)

    def answer(
        self,
        kind: str,
        box: list[Value],
        message: bytes,
        question: list[object],
        arguments: list[object],
        first: dict[int, Reference],
    ) -> bytes:
        """Kind and result; the arguments if they are no longer as they came, the tester's are then changed alike;
        whether something is kept here of what crosses, and is shared from now on.
        """
        try:
            if self.broken:
                raise CodecError(self.broken)
            contents = None
            if question and question[0] == "call" and arguments:
                asked = encode(tuple(question), self.describer.as_asked(first), self.shared.tags(), [])
                if asked != memoryview(message)[1:]:
                    contents = tuple(copy.copy(argument) for argument in arguments)
            keep = held(self.shared.numbers, box, question, arguments)
            numbers = self.shared.tags() | {id(argument): number for number, argument in enumerate(arguments)}
            noted = list(arguments)
            data = encode((kind, box[0], contents, keep), self.describer.refer, numbers, noted, self.describer.mirror)
            if keep:
                own = set(map(id, contents or ()))
                self.shared.enter([it for it in noted if id(it) not in own], self.encode_shared)
            return data
        except CodecError as error:
            if kind != "raised":
                return encode(("untransportable", str(error), None, False))
        except BaseException as error:
            box[0] = error if kind != "raised" else box[0]
        return encode(("raised", RuntimeError(), None, False), lambda _: (b"E", [0, type(box[0]), (), ()]))

    def encode_shared(self, content: object, noted: list[object]) -> bytes:
        return encode(content, self.describer.refer, self.shared.tags(), noted, self.describer.mirror)

    def tell_changes(self) -> None:
        """Before every message that is not such a one itself."""
        self.describer.chained = False
        if not self.shared.containers or self.broken:
            return
        try:
            if (told := self.shared.changes(self.encode_shared)) is not None:
                noted: list[object] = []
                wire.send(self.replies, wire.CHANGES + self.encode_shared(told, noted))
                self.shared.settle(*told, noted, self.encode_shared)
        except CodecError as error:
            self.broken = str(error)

    def take_over(self, message: bytes) -> None:
        with self.turn:
            noted: list[object] = []
            gone, changed = decode(message, self.resolve, noted, 1)
            try:
                self.shared.take_over(changed)
                self.shared.settle(gone, changed, noted, self.encode_shared)
            except (CodecError, ValueError) as error:
                self.broken = str(error)

    def call_back(self, number: int, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What the tester's function returns or raises. Waits while no question is on top."""
        with self.turn:
            while not (self.pending and self.pending[-1][0]):
                self.turn.wait()
            self.tell_changes()
            noted: list[object] = []
            asked = self.encode_shared((number, args, tuple(kwargs.items())), noted)
            wire.send(self.replies, wire.CALL + asked)
            self.shared.enter(noted, self.encode_shared)
            self.pending.append((False, None))
        while (message := wire.receive(self.requests))[:1] != wire.RETURN:
            self.respond(message)  # the function itself has a question
        with self.turn:
            noted = []
            raised, value, keep = decode(message, self.resolve, noted, 1)
            if keep:
                self.shared.enter(noted, self.encode_shared)
            self.pending.pop()
            self.turn.notify_all()
        if raised:
            raise value
        return value

    def on_run(self, source: str) -> Result:
        """The candidate's code, in a module of its own: dataclasses look theirs up by name."""
        sys.modules[MODULE] = self.module
        random.seed(0)
        exec(compile(source, f"<{MODULE}>", "exec", dont_inherit=True), self.module.__dict__)
        return "value", None

    def on_name(self, name: str) -> Result:
        if name not in self.module.__dict__:
            raise Absent
        value = self.module.__dict__[name]
        if type(value) is types.ModuleType:
            return "module", (value.__name__, value)
        library = library_name(value, name)
        return ("library", library) if library else ("value", value)

    def on_reads(self, names: tuple[str, ...]) -> Result:
        """Which of these the candidate's functions look up as global names."""
        todo = [value.__code__ for value in vars(self.module).values() if type(value) is types.FunctionType]
        for value in list(vars(self.module).values()):
            if isinstance(value, type):
                todo += [it.__code__ for it in vars(value).values() if type(it) is types.FunctionType]
        found: set[str] = set()
        while todo:
            code = todo.pop()
            found |= {it.argval for it in dis.get_instructions(code) if it.opname == "LOAD_GLOBAL"} & set(names)
            todo += [inner for inner in code.co_consts if type(inner) is types.CodeType]
        return "value", sorted(found)

    def on_call(self, function: Value, args: tuple[object, ...], kwargs: dict[str, object]) -> Result:
        return "value", function(*args, **kwargs)

    def on_do(self, name: str, target: object, *args: object) -> Result:
        return "value", OPERATIONS[name](target, *args)


def content(value: Value) -> object:
    """The plain data that an object derives from."""
    base: Value = next(base for base in type(value).__mro__ if base in MUTABLE)
    if base is dict:
        return dict.copy(value)
    return base.__getitem__(value, slice(None)) if base in (list, bytearray) else base(base.__iter__(value))


def leave(target: Value, error: BaseException | None) -> bool:
    """Whether a context swallows the exception."""
    kind, trace = (None, None) if error is None else (type(error), error.__traceback__)
    return bool(type(target).__exit__(target, kind, error, trace))


def run_coroutine(target: Coroutine[object, object, object]) -> object:
    """All of it: its event loop is here."""
    import asyncio

    global LOOP
    if LOOP is None:
        LOOP = asyncio.new_event_loop()
    return LOOP.run_until_complete(target)


LOOP: asyncio.AbstractEventLoop | None = None


def signature(target: Callable[..., object]) -> tuple[list[tuple[object, ...]], list[object]]:
    """Parameters (name, kind, and default and annotation, if any, in lists), and what it returns, if told."""
    told, empty = inspect.signature(target), inspect.Parameter.empty
    parameters = [
        (it.name, int(it.kind), *([] if what is empty else [what] for what in (it.default, it.annotation)))
        for it in told.parameters.values()
    ]
    return parameters, [] if told.return_annotation is empty else [told.return_annotation]


UNARY: dict[str, Callable[..., Value]] = {
    **{name: getattr(operator, name) for name in ("neg", "pos", "abs", "invert", "index")},
    **{"int": int, "float": float, "complex": complex, "round": round},
    **{name: getattr(math, name) for name in ("trunc", "floor", "ceil")},
}


def binary(left: Value, name: str, right: Value) -> object:
    if name == "divmod":
        return divmod(left, right)
    return getattr(operator, f"{name}_" if name in ("and", "or") else name)(left, right)


OPERATIONS: dict[str, Callable[..., Value]] = {
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "delattr": delattr,
    "delitem": operator.delitem,
    "contains": operator.contains,
    "reversed": reversed,
    "binary": binary,
    "unary": lambda target, name, *more: UNARY[name](target, *more),
    "operators": operators,
    "content": content,
    "format": format,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "type": type,
    "enter": lambda target: target.__enter__(),
    "exit": leave,
    "run coroutine": run_coroutine,
    "signature": signature,
    "issubclass": lambda target, value: issubclass(value, target),
    "isinstance": lambda target, value: isinstance(value, target),
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": lambda target: str.__str__(str(target)),
    "repr": lambda target: str.__str__(repr(target)),
}


def run(requests: int, replies: int, library_path: list[str]) -> None:
    """Confined by now: say so, then serve."""
    sys.path.extend(library_path)
    sys.setrecursionlimit(sys.getrecursionlimit() + FRAMES_OF_THIS_MODULE)
    modes.allow_no_change()
    os.write(replies, wire.READY)
    Server(requests, replies).serve()
