"""The tester's side of the pipes: questions to the candidate's process, and what its answers stand for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from . import wire
from .codec import MIRRORED, MUTABLE, CodecError, decode, encode
from .objects import (
    ExceptionType,
    Remote,
    Untransportable,
    exception,
    exception_class,
    is_remote,
    mirror_class,
    mirrored,
)
from .values import TYPES, expect

CHANGING = "getattr", "setattr", "delattr", "setitem", "delitem", "next", "binary", "exit"
"""Questions beside calls after which an object may be another."""
KEPT_FRESH = 64
"""Lists, dicts and sets of the candidate's own classes of which the copies follow what its methods do to them."""


class BadReply(Exception):
    """The candidate's process answered with something that no honest one would; the text is the verdict's reason."""


SHAPES: dict[str, list[type]] = {
    "value": [object],
    "changed": [object, list],
    "raised": [object],
    "untransportable": [str],
    "absent": [],
    "module": [str, object],
    "callback": [int, tuple, dict],
}
"""What may follow the first word of an answer."""


def well_formed(answer: Any) -> bool:
    if type(answer) is not list or not answer or type(answer[0]) is not str or answer[0] not in SHAPES:
        return False
    kinds, parts = SHAPES[answer[0]], answer[1:]
    return len(kinds) == len(parts) and all(
        kind is object or type(part) is kind for kind, part in zip(kinds, parts, strict=True)
    )


class Link:
    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.remotes: dict[int, Any] = {}
        self.exceptions: dict[int, tuple[Any, Remote]] = {}
        """By the id of an exception here: itself, so that the id stays its own, and the candidate's."""
        self.mirrors: dict[type, type] = {}
        self.fresh: list[Any] = []
        self.callbacks: list[Callable[..., Any]] = []
        self.untransportable = ""
        """Why the verdict cannot be had, once it cannot."""

    def refer(self, value: Any) -> tuple[bytes, Any]:
        if isinstance(value, ExceptionType):
            return b"h", value._remote._remote_number
        if id(value) in self.exceptions:
            return b"h", self.exceptions[id(value)][1]._remote_number
        if is_remote(value):
            return b"h", value._remote_number
        if isinstance(value, BaseException):
            kind = next(base for base in type(value).__mro__ if base in TYPES.values())
            return b"E", [0, kind, value.args]
        if callable(value):
            self.callbacks.append(value)
            return b"k", len(self.callbacks) - 1
        raise self.refused(f"an argument of type {type(value).__name__}")

    def refused(self, why: str) -> Untransportable:
        self.untransportable = self.untransportable or why
        return Untransportable(why)

    def resolve(self, arguments: list[Any], tag: bytes, told: Any) -> Any:
        if tag == b"k":
            return self.callbacks[told]
        if tag == b"o":
            return arguments[told]
        if tag == b"h":
            raise CodecError("a reference that is not a candidate's")
        if tag == b"E" and told[:1] == [0]:
            kind, args = expect(told[1:], [type, tuple])
            return (
                exception(kind, args) if kind in TYPES.values() and issubclass(kind, BaseException) else expect([], [0])
            )
        number = told[0]
        if type(number) is not int or number < 0:
            raise CodecError("malformed: a number of an object")
        if number not in self.remotes:
            self.remotes[number] = self.described(tag, number, told[1:])
        return self.remotes[number]

    def described(self, tag: bytes, number: int, told: list[Any]) -> Any:
        if tag == b"H":
            flags, hashed = expect(told, [int, object])
            if not (hashed is None or type(hashed) is int):
                raise CodecError("malformed: a hash")
            return Remote(self, number, flags, hashed)
        if tag == b"u":
            flags, content = expect(told, [int, object])
            return self.mirror(number, flags, content)
        if tag == b"X":
            name, bases = expect(told, [str, list])
            good = [base for base in bases if isinstance(base, type) and issubclass(base, BaseException)]
            good = [Exception if issubclass(base, BaseExceptionGroup) else base for base in good]
            return exception_class(Remote(self, number), name, tuple(dict.fromkeys(good)) or (Exception,))
        kind, args = expect(told, [ExceptionType, tuple])
        made = exception(kind, args)
        self.exceptions[id(made)] = made, Remote(self, number)
        return made

    def mirror(self, number: int, flags: int, content: Any) -> Any:
        base = type(content)
        if base not in MIRRORED:
            raise CodecError("malformed: no plain data to derive from")
        kind = self.mirrors.setdefault(base, mirror_class(base))
        value = mirrored(kind, content, self, number, flags)
        if base in MUTABLE and len(self.fresh) < KEPT_FRESH:
            self.fresh.append(value)
        return value

    def ask(self, *question: Any) -> list[Any]:
        """The answer's parts. Raises what the candidate raised; BadReply, Untransportable, wire.Closed."""
        arguments: list[Any] = []
        wire.send(self.requests, self.encode(question, arguments))
        while True:
            answer = self.receive(arguments)
            if answer[0] == "callback":
                wire.send(self.requests, self.run_callback(*answer[1:]))
                continue
            if answer[0] == "untransportable":
                raise self.refused(answer[1])
            if answer[0] == "changed":
                replace(arguments, answer[2])
            if self.fresh and (question[0] == "call" or (question[0] == "do" and question[1] in CHANGING)):
                self.refresh()
            if answer[0] == "raised":
                raise answer[1] if isinstance(answer[1], BaseException) else BadReply("malformed reply")
            return answer

    def encode(self, value: Any, arguments: list[Any] | None = None) -> bytes:
        try:
            return encode(value, self.refer, {}, arguments)
        except CodecError as error:
            raise self.refused(str(error)) from None

    def receive(self, arguments: list[Any]) -> list[Any]:
        try:
            answer = decode(wire.receive(self.replies), partial(self.resolve, arguments))
        except wire.TooLong:
            raise self.refused(f"a value above {wire.MAX_MESSAGE // 2**20} MiB") from None
        except CodecError:
            raise BadReply("malformed reply") from None
        if not well_formed(answer):
            raise BadReply("malformed reply")
        return answer

    def refresh(self) -> None:
        """Copies follow their objects; those of the tester's own making do not."""
        for value in self.fresh:
            content = self.do("content", value)
            base = type(value).__mro__[1]
            if type(content) is not base:
                raise BadReply("malformed reply")
            fill(value, base, content)

    def run_callback(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        try:
            return self.encode(("value", self.callbacks[number](*args, **kwargs)))
        except (wire.Closed, BadReply, Untransportable):
            raise
        except BaseException as error:
            return self.encode(("raised", error))

    def value(self, answer: list[Any]) -> Any:
        if answer[0] not in ("value", "changed"):
            raise BadReply("malformed reply")
        return answer[1]

    def do(self, name: str, target: Any, *args: Any) -> Any:
        return self.value(self.ask("do", name, target, *args))

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.value(self.ask("call", target, args, kwargs))


def replace(arguments: list[Any], contents: list[Any]) -> None:
    """Change the tester's own containers, in place, to what the candidate made of its copies."""
    if len(arguments) != len(contents):
        raise BadReply("malformed reply")
    for argument, content in zip(arguments, contents, strict=True):
        kind = next(kind for kind in MUTABLE if isinstance(argument, kind))
        if not isinstance(content, kind):
            raise BadReply("malformed reply")
        fill(argument, kind, content)


def fill(container: Any, kind: Any, content: Any) -> None:
    if kind in (list, bytearray):
        kind.__setitem__(container, slice(None), content)
    else:
        kind.clear(container)
        (deque.extend if kind is deque else kind.update)(container, content)
