"""The tester's side of what lives in the candidate's process.

A `Remote` answers nothing by itself. It is equal to itself alone, has no order and no arithmetic, and never turns into
a number: an object that claims to equal everything cannot say so here.
"""

from __future__ import annotations

import builtins
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from . import wire
from .codec import MUTABLE, CodecError, decode, encode

NAMES_TO_ASK_FOR = {"__name__", "__qualname__", "__doc__"}
"""Special attributes that a test may want. All others are protocols, and some of those hand out memory."""


class Remote:
    __slots__ = ("_remote_link", "_remote_number")

    _remote_link: Link
    _remote_number: int

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_remote_link", link)
        object.__setattr__(self, "_remote_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._remote_link.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in NAMES_TO_ASK_FOR:
            raise AttributeError(name)
        return self._remote_link.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_link.do("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._remote_link.do("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._remote_link.do("setitem", self, key, value)

    def __instancecheck__(self, instance: Any) -> bool:
        return bool(self._remote_link.do("isinstance", self, instance))

    def __iter__(self) -> Iterator[Any]:
        return iter_remote(self._remote_link, self._remote_link.do("iter", self))

    def __next__(self) -> Any:
        return self._remote_link.do("next", self)

    def __len__(self) -> int:
        return int(self._remote_link.do("len", self))

    def __bool__(self) -> bool:
        return bool(self._remote_link.do("bool", self))

    def __str__(self) -> str:
        return str(self._remote_link.do("str", self))

    def __repr__(self) -> str:
        return str(self._remote_link.do("repr", self))


def iter_remote(link: Link, iterator: Any) -> Iterator[Any]:
    while True:
        try:
            item = link.do("next", iterator)
        except StopIteration:
            return
        yield item


class BadReply(Exception):
    """The candidate's process answered with something that no honest one would; the text is the verdict's reason."""


SHAPES: dict[str, list[type]] = {
    "value": [object],
    "changed": [object, list],
    "raised": [str, str, tuple],
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
    """Questions to the candidate's process, one at a time."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.remotes: dict[int, Remote] = {}
        self.callbacks: list[Callable[..., Any]] = []
        self.arguments: list[Any] = []

    def refer(self, value: Any) -> tuple[bytes, int]:
        if type(value) is Remote:
            return b"h", value._remote_number
        if callable(value):
            self.callbacks.append(value)
            return b"k", len(self.callbacks) - 1
        raise TypeError(f"an argument of type {type(value).__name__} cannot be handed to the candidate")

    def resolve(self, tag: bytes, number: int) -> Any:
        if tag == b"k":
            return self.callbacks[number]
        if tag == b"o":
            return self.arguments[number]
        return self.remotes.setdefault(number, Remote(self, number))

    def ask(self, *question: Any) -> list[Any]:
        """The answer's parts. Raises what the candidate raised; BadReply, wire.Closed."""
        arguments: list[Any] = []
        wire.send(self.requests, encode(question, self.refer, {}, arguments))
        while True:
            self.arguments = arguments  # a callback may have asked questions of its own meanwhile
            answer = self.receive()
            if answer[0] == "raised":
                raise raised(*answer[1:])
            if answer[0] == "changed":
                replace(arguments, answer[2])
            if answer[0] != "callback":
                return answer
            wire.send(self.requests, self.run_callback(*answer[1:]))

    def receive(self) -> list[Any]:
        try:
            answer = decode(wire.receive(self.replies), self.resolve)
        except wire.TooLong:
            raise BadReply("output") from None
        except CodecError:
            raise BadReply("malformed reply") from None
        if not well_formed(answer):
            raise BadReply("malformed reply")
        return answer

    def run_callback(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        try:
            return encode(("value", self.callbacks[number](*args, **kwargs)), self.refer)
        except (wire.Closed, BadReply):
            raise
        except BaseException as error:
            return encode(("raised", type(error).__name__))

    def value(self, answer: list[Any]) -> Any:
        if answer[0] not in ("value", "changed"):
            raise BadReply("malformed reply")
        return answer[1]

    def do(self, name: str, target: Any, *args: Any) -> Any:
        return self.value(self.ask("do", name, target, *args))

    def call(self, target: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.value(self.ask("call", target, args, kwargs))


def replace(arguments: list[Any], contents: list[Any]) -> None:
    """Change the tester's own containers, in place, to what the candidate made of its copies."""
    if len(arguments) != len(contents):
        raise BadReply("malformed reply")
    for argument, content in zip(arguments, contents, strict=True):
        kind = next(kind for kind in MUTABLE if isinstance(argument, kind))
        if type(content) is not kind:
            raise BadReply("malformed reply")
        if kind in (list, bytearray):
            argument[:] = content
        else:
            kind.clear(argument)
            (deque.extend if kind is deque else kind.update)(argument, content)  # type: ignore[attr-defined]


def raised(name: str, base_name: str, args: tuple[Any, ...]) -> BaseException:
    """An exception of the builtin class, under the name of the candidate's own."""
    base = getattr(builtins, base_name, None)
    if not (isinstance(base, type) and issubclass(base, BaseException)) or issubclass(base, BaseExceptionGroup):
        base = Exception
    kind = base if base.__name__ == name or "\0" in name else type(name.encode(errors="replace").decode(), (base,), {})
    return kind.__new__(kind, *args)
