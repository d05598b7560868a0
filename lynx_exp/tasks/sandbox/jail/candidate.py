"""The process that runs a candidate's code: answers the tester's questions until it is killed.

Whatever is in this process belongs to the candidate, this module included: it may answer anything, and all that it can
reach of the tester is what the tester decodes.
"""

from __future__ import annotations

import copy
import os
import random
import sys
import types
from collections.abc import Callable
from typing import Any

from . import wire
from .codec import decode, encode

MODULE = "program"
NUMERIC_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
FRAMES_OF_THIS_MODULE = 20


class Callback:
    """A function of the tester, among the candidate's arguments."""

    __slots__ = ("_number", "_server")

    def __init__(self, number: int, server: Server) -> None:
        self._number, self._server = number, server

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._server.call_back(self._number, args, kwargs)


class Server:
    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.module = types.ModuleType(MODULE)

    def refer(self, value: Any) -> tuple[bytes, int]:
        """A number for what is not plain data; the object is kept, so that its number stays its own."""
        if type(value) is Callback:
            return b"k", value._number
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return b"h", number

    def resolve(self, tag: bytes, number: int) -> Any:
        return Callback(number, self) if tag == b"k" else self.objects[number]

    def encode(self, value: Any) -> bytes:
        return encode(value, self.refer)

    def serve(self) -> None:
        while True:
            wire.send(self.replies, self.answer(wire.receive(self.requests)))

    def answer(self, question: bytes) -> bytes:
        try:
            arguments: list[Any] = []
            kind, *rest = decode(question, self.resolve, arguments)
            if kind == "call":
                return self.call(question, arguments, *rest)
            return getattr(self, f"on_{kind}")(*rest)
        except wire.Closed:
            os._exit(1)
        except BaseException as error:  # SystemExit and KeyboardInterrupt are failures like any other
            return self.describe(error)

    def describe(self, error: BaseException) -> bytes:
        kind = type(error)
        base = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        message = ["raised", type.__dict__["__name__"].__get__(kind), base.__name__, error.args]
        try:
            return self.encode(message)
        except BaseException:
            return self.encode([*message[:3], ()])

    def value(self, value: Any) -> bytes:
        return self.encode(["value", plain_number(value)])

    def on_run(self, source: str) -> bytes:
        """The candidate's code, in a module of its own: dataclasses look theirs up by name."""
        sys.modules[MODULE] = self.module
        random.seed(0)
        exec(compile(source, f"<{MODULE}>", "exec"), self.module.__dict__)
        return self.value(None)

    def on_name(self, name: str) -> bytes:
        if name not in self.module.__dict__:
            return self.encode(["absent"])
        value = self.module.__dict__[name]
        if type(value) is types.ModuleType:
            return self.encode(["module", value.__name__, value])
        return self.value(value)

    def call(self, question: bytes, arguments: list[Any], function: Any, args: Any, kwargs: Any) -> bytes:
        """Result, and the arguments if they are no longer as they came: the tester's are then changed alike."""
        result = plain_number(function(*args, **kwargs))
        numbers = {id(argument): number for number, argument in enumerate(arguments)}
        if encode(("call", function, args, kwargs), self.refer, {}, []) == question:
            return encode(["value", result], self.refer, numbers)
        return encode(["changed", result, [copy.copy(argument) for argument in arguments]], self.refer, numbers)

    def on_do(self, name: str, target: Any, *args: Any) -> bytes:
        return self.value(OPERATIONS[name](target, *args))

    def call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        wire.send(self.replies, self.encode(["callback", number, args, kwargs]))
        while True:
            message = wire.receive(self.requests)
            kind, *rest = decode(message, self.resolve)
            if kind == "value":
                return rest[0]
            if kind == "raised":
                raise builtin_exception(rest[0])()
            wire.send(self.replies, self.answer(message))  # the function itself has a question


def plain_number(value: Any) -> Any:
    """A NumPy scalar as the number it is: its own `==` would say so in one process."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "isinstance": lambda target, value: isinstance(value, target),
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": lambda target: str.__str__(str(target)),
    "repr": lambda target: str.__str__(repr(target)),
}


def builtin_exception(name: str) -> type[BaseException]:
    kind = __builtins__.get(name) if isinstance(__builtins__, dict) else getattr(__builtins__, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, BaseException) else RuntimeError


def run(requests: int, replies: int, library_path: list[str]) -> None:
    """Confined by now: say so, then serve."""
    sys.path.extend(library_path)
    sys.setrecursionlimit(sys.getrecursionlimit() + FRAMES_OF_THIS_MODULE)
    for name in NUMERIC_THREADS:
        os.putenv(name, "1")  # in the C library's environment only: Python's stays empty
    os.write(replies, wire.READY)
    Server(requests, replies).serve()
