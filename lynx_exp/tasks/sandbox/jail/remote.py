"""The tester's side of the connection to the candidate's process.

`Link` sends requests (run this source, call this object, read this attribute) and turns replies into values, or into
the stand-ins of `objects`. While it waits for a reply, the candidate may call functions of the test in turn.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias, TypeGuard

from . import wire
from .codec import MIRRORED, MUTABLE, CodecError, Reference, decode, encode
from .described import Parameter
from .objects import (
    METHODS,
    ExceptionType,
    Remote,
    Untransportable,
    exception,
    exception_class,
    is_remote,
    mirror_class,
    mirrored,
    remote_class,
)
from .shared_containers import MAX_WORK, Shared, fill, held, kind_of
from .values import TYPES, Value, expect

CHANGING = "getattr", "setattr", "delattr", "setitem", "delitem", "next", "binary", "exit"
"""Requests, besides calls, that may change an object."""
KEPT_FRESH = 64
"""How many copies of mutable objects of the candidate's classes are updated after each request that may change them."""


class BadReply(Exception):
    """The candidate's process sent a reply that the real one never sends; the text is the reason of the verdict."""


TOO_MUCH = "too much that program and test both hold and change"
"""The reason of a verdict where shared containers have cost too much work."""
RESULTS = {"value": object, "raised": object, "untransportable": str, "absent": type(None)}
RESULTS |= {"module": tuple, "library": str}
"""The type of the result for each kind of reply."""

Answer: TypeAlias = tuple[str, Value, tuple[object, ...] | None, bool]
"""(kind, result, new contents of the arguments or None, whether the candidate keeps a container of the message)"""


def well_formed(answer: object) -> TypeGuard[Answer]:
    """Whether a decoded reply has the types of `Answer`."""
    if type(answer) is not tuple or len(answer) != 4 or type(answer[0]) is not str or answer[0] not in RESULTS:
        return False
    kind, result, contents, keep = answer
    return (
        (RESULTS[kind] is object or type(result) is RESULTS[kind])
        and type(contents) in (type(None), tuple)
        and type(keep) is bool
    )


class Link:
    """A connection to the candidate's process, and all that the two sides know of each other's objects."""

    def __init__(self, requests: int, replies: int) -> None:
        """`requests` and `replies` are file descriptors of pipes."""
        self.requests, self.replies = requests, replies
        self.remotes: dict[int, object] = {}
        """Stand-ins for the candidate's objects, by their numbers."""
        self.exceptions: dict[int, tuple[BaseException, Remote]] = {}
        """By the id() of an exception here: the exception, which keeps the id valid, and the candidate's exception."""
        self.mirrors: dict[type, type] = {}
        self.fresh: list[object] = []
        """Copies of mutable objects, which are updated (see `KEPT_FRESH`)."""
        self.callbacks: list[object] = []
        """The functions, exceptions and exception classes of the test that were sent to the candidate."""
        self.callback_numbers: dict[int, int] = {}
        """Their positions, by id()."""
        self.shared = Shared()
        self.turn = threading.RLock()
        """Held during a request, so that threads of the test send one request at a time."""
        self.untransportable = ""
        """Why the program cannot be judged; empty as long as it can."""
        self.doubt = ""
        """Why a failure of the test may not be one in a plain process; empty as long as it would be."""
        self.disordered = False
        """Whether a set was received whose order of iteration differs between the two processes."""
        self.signatures = False
        """Whether the candidate may look at signatures of the test's functions."""
        self.stops = False
        """Whether the test names StopIteration, which calls then raise as it is."""
        self.leaves_nothing_out: Callable[[TracebackType | None], bool] = lambda _: False

    def refer(self, value: Value) -> Reference:
        """The reference to an object that is not plain data, for `encode`; a first mention describes it."""
        if isinstance(value, ExceptionType):
            return b"h", value._remote._remote_number
        if id(value) in self.exceptions:
            return b"h", self.exceptions[id(value)][1]._remote_number
        if is_remote(value):
            return b"h", value._remote_number
        if (known := self.callback_numbers.get(id(value))) is not None:
            return b"k", known
        if not callable(value) and not isinstance(value, BaseException):
            raise self.refused(f"an argument of type {type(value).__name__}")
        number = self.callback_numbers[id(value)] = len(self.callbacks)
        self.callbacks.append(value)
        if isinstance(value, BaseException):
            return b"E", [number, type(value), value.args]
        name = getattr(value, "__name__", type(value).__name__)
        if isinstance(value, type) and issubclass(value, BaseException):
            return b"X", [number, name, tuple(base for base in value.__bases__ if issubclass(base, BaseException))]
        names = [str(name), str(getattr(value, "__qualname__", name)), str(getattr(value, "__doc__", None) or "")]
        return b"K", [number, *names, parameters(value) if self.signatures else None]

    def refused(self, why: str) -> Untransportable:
        """Note that the program cannot be judged; returns the exception to raise."""
        self.untransportable = self.untransportable or why
        return Untransportable(why)

    def resolve(self, tag: bytes, reference: int | list[object] | None) -> object:
        """The object for a reference, for `decode`. None in place of a reference reports a set in another order."""
        if reference is None:
            self.disordered = True
            return None
        if isinstance(reference, int):
            if tag == b"k":
                return self.callbacks[reference]
            if tag == b"w":
                return self.shared.containers[reference]
            raise CodecError("a reference that is not a candidate's")
        # exception number 0 is of a builtin class, and is copied instead of kept in the candidate's process
        if tag == b"E" and reference[:1] == [0]:
            kind, args, more = expect(reference[1:], (object, tuple, tuple))
            if not isinstance(kind, type) or kind not in TYPES.values() or not issubclass(kind, BaseException):
                raise CodecError("malformed: a class of exceptions")
            return exception(kind, args, more)
        number = reference[0]
        if type(number) is not int or number < 0:
            raise CodecError("malformed: a number of an object")
        if number not in self.remotes:
            self.remotes[number] = self.described(tag, number, reference[1:])
        return self.remotes[number]

    def described(self, tag: bytes, number: int, parts: list[object]) -> object:
        """Make the stand-in for an object that is mentioned for the first time; CodecError for a bad description."""
        if tag == b"H":
            flags, hashed, protocols, nature = expect(parts, (int, object, int, str))
            if not (hashed is None or type(hashed) is int) or not 0 <= protocols < 2 ** len(METHODS):
                raise CodecError("malformed: a hash, or what an object has")
            return remote_class(protocols, nature)(self, number, flags, hashed)
        if tag == b"u":
            flags, content = expect(parts, (int, object))
            return self.mirror(number, flags, content)
        if tag == b"X":
            name, bases = expect(parts, (str, tuple))
            good = [base for base in bases if isinstance(base, type) and issubclass(base, BaseException)]
            good = [Exception if issubclass(base, BaseExceptionGroup) else base for base in good]
            return exception_class(Remote(self, number), name, tuple(dict.fromkeys(good)) or (Exception,))
        if tag != b"E":
            raise CodecError("malformed: an unknown object")
        kind, args, more = expect(parts, (ExceptionType, tuple, tuple))
        error = exception(kind, args, more)
        self.exceptions[id(error)] = error, Remote(self, number)
        return error

    def mirror(self, number: int, flags: int, content: object) -> object:
        """Make the copy of an object that derives from plain data."""
        base = type(content)
        if base not in MIRRORED:
            raise CodecError("malformed: no plain data to derive from")
        kind = self.mirrors.setdefault(base, mirror_class(base))
        value = mirrored(kind, content, self, number, flags)
        if base in MUTABLE and len(self.fresh) < KEPT_FRESH:
            self.fresh.append(value)
        return value

    def ask(self, *question: object) -> tuple[str, Value]:
        """Send a request and wait for the reply.

        Args:
            question: The kind of request and its arguments. The candidate's changes to containers in it are copied
                back, as if both sides had the same objects.

        Returns:
            (kind, result) of the reply.

        Raises:
            BadReply: The reply is malformed.
            Untransportable: The program cannot be judged.
            wire.Closed: The candidate's process has ended.
            Exception: Whatever the candidate's code raised.
        """
        with self.turn:
            arguments: list[object] = []
            self.tell_changes()
            wire.send(self.requests, wire.QUESTION + self.encode(question, arguments))
            sent = len(arguments)  # the list grows by the containers of the reply
            kind, result, contents, keep = self.answer(arguments)
            if kind == "untransportable":
                raise self.refused(result)
            if contents is not None:
                replace(arguments[:sent], contents)
            if keep:
                own = set(map(id, contents or ()))
                self.shared.enter([it for it in arguments if id(it) not in own], self.encode)
            if self.fresh and (question[0] == "call" or (question[0] == "do" and question[1] in CHANGING)):
                self.refresh()
            if kind == "raised":
                raise result if isinstance(result, BaseException) else BadReply("malformed reply")
            return kind, result

    def answer(self, arguments: list[object]) -> Answer:
        """Wait for the reply to a request, and serve callbacks until it comes.

        Args:
            arguments: The mutable containers of the request, to which those of the reply are appended.
        """
        while True:
            try:
                message = wire.receive(self.replies)
            except wire.TooLong:
                raise self.refused(f"a value above {wire.MAX_MESSAGE // 2**20} MiB") from None
            kind = message[:1]
            noted = arguments if kind == wire.ANSWER else []
            try:
                content = decode(message, self.resolve, noted, 1)
                if kind == wire.ANSWER and well_formed(content):
                    return content
                if kind == wire.CHANGES:
                    self.take_over(content, noted)
                    continue
                number, args, pairs = expect(content, (int, tuple, tuple))
                function, kwargs = self.callbacks[number], dict(pairs)
            except (CodecError, ValueError, TypeError, LookupError):
                raise BadReply("malformed reply") from None
            if kind != wire.CALL or not callable(function):
                raise BadReply("malformed reply")
            self.shared.enter(noted, self.encode)
            noted.clear()
            wire.send(self.requests, self.run_callback(function, args, kwargs))

    def encode(self, value: object, noted: list[object] | None = None) -> bytes:
        """Encode a value for the candidate; Untransportable if that is not possible."""
        try:
            return encode(value, self.refer, self.shared.tags(), noted)
        except CodecError as error:
            raise self.refused(str(error)) from None

    def tell_changes(self) -> None:
        """Send the changes of shared containers. This comes before every other message."""
        if self.shared.containers and (changes := self.shared.changes(self.encode)) is not None:
            noted: list[object] = []
            wire.send(self.requests, wire.CHANGES + self.encode(changes, noted))
            self.shared.settle(*changes, noted, self.encode)
        if self.shared.exhausted:
            self.doubt = self.doubt or TOO_MUCH

    def take_over(self, changes: object, noted: list[object]) -> None:
        """Apply the candidate's changes to shared containers."""
        gone, changed = expect(changes, (tuple, tuple))
        if gone and len(gone) == len(self.shared.containers) and self.shared.work > MAX_WORK // 8:
            self.doubt = self.doubt or TOO_MUCH  # the candidate reached the limit first
        self.shared.take_over(changed)
        self.shared.settle(gone, changed, noted, self.encode)

    def refresh(self) -> None:
        """Update the copies of mutable objects of the candidate."""
        for value in self.fresh:
            content = self.do("content", value)
            base = type(value).__mro__[1]
            if type(content) is not base:
                raise BadReply("malformed reply")
            fill(value, base, content)

    def run_callback(
        self, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> bytes:
        """Call a function of the test for the candidate; returns the message with its result or exception."""
        box: list[object] = []
        raised = False
        try:
            box.append(function(*args, **kwargs))
        except (wire.Closed, BadReply, Untransportable):
            raise
        except BaseException as error:
            raised = True
            box.append(error)
        del args, kwargs
        self.tell_changes()
        noted: list[object] = []
        keep = not raised and held(self.shared.numbers, box)
        data = self.encode((raised, box[0], keep), noted)
        if keep:
            self.shared.enter(noted, self.encode)
        return wire.RETURN + data

    def value(self, answer: tuple[str, Value]) -> Value:
        """The result of a reply of the kind "value"; BadReply for another one."""
        if answer[0] != "value":
            raise BadReply("malformed reply")
        return answer[1]

    def do(self, name: str, target: object, *args: object) -> Value:
        """Apply the operation `name` of `candidate` to an object there."""
        try:
            return self.value(self.ask("do", name, target, *args))
        except StopIteration as stop:
            if name in ("next", "run coroutine") or self.stops:
                raise
            raise stopped() from stop

    def call(self, target: object, args: tuple[object, ...], kwargs: dict[str, object], stops: bool = False) -> Value:
        try:
            return self.value(self.ask("call", target, args, kwargs))
        except StopIteration as stop:
            if stops or self.stops:
                raise
            raise stopped() from stop


def parameters(function: Callable[..., object]) -> tuple[Parameter, ...] | None:
    """Name, kind and whether there is a default, of each parameter of a function of the test; None if unknown."""
    try:
        described = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return tuple((it.name, int(it.kind), it.default is not it.empty) for it in described)


def stopped() -> RuntimeError:
    """What replaces StopIteration from a call, as in generators (PEP 479): it would end a loop of the test silently."""
    return RuntimeError("the program raised StopIteration")


def replace(arguments: list[object], contents: tuple[object, ...]) -> None:
    """Change the test's containers in place to what the candidate made of its copies."""
    if len(arguments) != len(contents):
        raise BadReply("malformed reply")
    try:
        for argument, content in zip(arguments, contents, strict=True):
            fill(argument, kind_of(argument), content)
    except ValueError:
        raise BadReply("malformed reply") from None
