"""The process that runs a candidate's code: answers the tester's questions until it is killed.

Whatever is in this process belongs to the candidate, this module included: it may answer anything, and all that it can
reach of the tester is what the tester decodes.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import os
import random
import sys
import types
from collections.abc import Callable
from typing import Any

from . import wire
from .codec import MIRRORED, MUTABLE, CodecError, decode, encode
from .values import EXCEPTIONS

MODULE = "program"
OWN_EQUALITY, AMONG_ITS_KIND = 2, 1  # as in `objects`, which the candidate need not have
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
        self.objects: list[Any] = [None]
        self.numbers: dict[int, int] = {}
        self.module = types.ModuleType(MODULE)

    def refer(self, value: Any) -> tuple[bytes, Any]:
        """What stands for a value that is not plain data."""
        if type(value) is Callback:
            return b"k", value._number
        kind = type(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            bases = [base for base in type.__dict__["__bases__"].__get__(value) if issubclass(base, BaseException)]
            return b"X", [self.number(value), type.__dict__["__name__"].__get__(value), bases]
        if isinstance(value, BaseException):
            args = BaseException.args.__get__(value)  # type: ignore[attr-defined]
            return b"E", [0 if kind in EXCEPTIONS else self.number(value), kind, self.plain(args)]
        flags, hashed = equality(value, object), None
        if flags and kind.__hash__ is not None:
            with contextlib.suppress(Exception):
                hashed = hash(value)
        return b"H", [self.number(value), flags, hashed]

    def number(self, value: Any) -> int:
        """A number of its own, from 1 on; the object is kept, so that its number stays."""
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return number

    def mirror(self, value: Any, base: type) -> list[Any]:
        return [self.number(value), equality(value, base)]

    def plain(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """An exception's arguments, if they can cross."""
        try:
            self.encode(args)
        except Exception:
            return ()
        return args

    def as_asked(self, value: Any) -> tuple[bytes, Any]:
        """As the tester writes a reference."""
        if isinstance(value, BaseException) and type(value) in EXCEPTIONS and id(value) not in self.numbers:
            return b"E", [0, type(value), value.args]
        return (b"k", value._number) if type(value) is Callback else (b"h", self.numbers[id(value)])

    def resolve(self, tag: bytes, told: Any) -> Any:
        if tag == b"E":
            return told[1](*told[2])
        return Callback(told, self) if tag == b"k" else self.objects[told]

    def encode(self, value: Any, numbers: dict[int, int] | None = None) -> bytes:
        return encode(value, self.refer, numbers, None, self.mirror)

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
        except CodecError as error:
            return encode(["untransportable", str(error)])
        except BaseException as error:  # SystemExit and KeyboardInterrupt are failures like any other
            return self.describe(error)

    def describe(self, error: BaseException) -> bytes:
        try:
            return self.encode(["raised", error])
        except BaseException:
            return encode(["raised", RuntimeError()], lambda error: (b"E", [0, type(error), ()]))

    def value(self, value: Any) -> bytes:
        return self.encode(["value", value])

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
        result = function(*args, **kwargs)
        numbers = {id(argument): number for number, argument in enumerate(arguments)}
        if encode(("call", function, args, kwargs), self.as_asked, {}, []) == question:
            return self.encode(["value", result], numbers)
        return self.encode(["changed", result, [copy.copy(argument) for argument in arguments]], numbers)

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
                raise rest[0] if isinstance(rest[0], BaseException) else RuntimeError
            wire.send(self.replies, self.answer(message))  # the function itself has a question


def equality(value: Any, below: type) -> int:
    """Whether a class before `below` says what is equal to its objects, as `objects` has it."""
    for base in type.__dict__["__mro__"].__get__(type(value)):
        if base is below:
            break
        if "__eq__" in base.__dict__:
            code = getattr(base.__dict__["__eq__"], "__code__", None)
            generated = "__dataclass_fields__" in base.__dict__ and getattr(code, "co_filename", "") == "<string>"
            return AMONG_ITS_KIND if generated else OWN_EQUALITY
    return 0


def operators(value: Any) -> list[str]:
    """Special methods of the object's own classes, before plain data or `object`."""
    names: dict[str, None] = {}
    for base in type.__dict__["__mro__"].__get__(type(value)):
        if base is object or base in MIRRORED:
            break
        names |= dict.fromkeys(name for name in base.__dict__ if type(name) is str and name.startswith("__"))
    return list(names)


def content(value: Any) -> Any:
    """The plain data that an object derives from."""
    base: Any = next(base for base in type(value).__mro__ if base in MUTABLE)
    if base is dict:
        return dict.copy(value)
    return base.__getitem__(value, slice(None)) if base in (list, bytearray) else base(base.__iter__(value))


UNARY: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("neg", "pos", "abs", "invert", "index")},
    **{"int": int, "float": float, "complex": complex, "round": round},
    **{name: getattr(math, name) for name in ("trunc", "floor", "ceil")},
}


def binary(left: Any, name: str, right: Any) -> Any:
    if name == "divmod":
        return divmod(left, right)
    return getattr(operator, f"{name}_" if name in ("and", "or") else name)(left, right)


OPERATIONS: dict[str, Callable[..., Any]] = {
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
    "exit": lambda target: bool(target.__exit__(None, None, None)),
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
    os.write(replies, wire.READY)
    Server(requests, replies).serve()
