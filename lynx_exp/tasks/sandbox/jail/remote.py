"""The tester's side of the pipes: questions to the candidate's process, and what its answers stand for."""

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
"""Questions beside calls after which an object may be another."""
KEPT_FRESH = 64
"""Lists, dicts and sets of the candidate's own classes of which the copies follow what its methods do to them."""


class BadReply(Exception):
    """The candidate's process answered with something that no honest one would; the text is the verdict's reason."""


TOO_MUCH = "too much that program and test both hold and change"
RESULTS = {"value": object, "raised": object, "untransportable": str, "absent": type(None)}
RESULTS |= {"module": tuple, "library": str}
"""What may follow the first word of an answer."""


Answer: TypeAlias = tuple[str, Value, tuple[object, ...] | None, bool]
"""Kind, result, what the arguments have become, and whether something is shared from now on."""


def well_formed(answer: object) -> TypeGuard[Answer]:
    if type(answer) is not tuple or len(answer) != 4 or type(answer[0]) is not str or answer[0] not in RESULTS:
        return False
    kind, result, contents, keep = answer
    return (
        (RESULTS[kind] is object or type(result) is RESULTS[kind])
        and type(contents) in (type(None), tuple)
        and type(keep) is bool
    )


class Link:
    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.remotes: dict[int, object] = {}
        self.exceptions: dict[int, tuple[BaseException, Remote]] = {}
        """By the id of an exception here: itself, so that the id stays its own, and the candidate's."""
        self.mirrors: dict[type, type] = {}
        self.fresh: list[object] = []
        self.callbacks: list[object] = []
        """The test's functions, exceptions and their classes, as far as the candidate knows them; by their ids: """
        self.callback_numbers: dict[int, int] = {}
        self.shared = Shared()
        self.turn = threading.RLock()
        """A thread's own while it asks: those of the test wait for one another."""
        self.untransportable = ""
        """Why the verdict cannot be had, once it cannot."""
        self.doubt = ""
        """Why a failure from now on may be none in a plain process."""
        self.disordered = False
        """Whether a set came that has another order here than there."""
        self.signatures = False
        """Whether the candidate may look at signatures of the test's functions."""
        self.stops = False
        """Whether the test itself deals with StopIteration."""
        self.leaves_nothing_out: Callable[[TracebackType | None], bool] = lambda _: False

    def refer(self, value: Value) -> Reference:
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
        told = [str(name), str(getattr(value, "__qualname__", name)), str(getattr(value, "__doc__", None) or "")]
        return b"K", [number, *told, parameters(value) if self.signatures else None]

    def refused(self, why: str) -> Untransportable:
        self.untransportable = self.untransportable or why
        return Untransportable(why)

    def resolve(self, tag: bytes, told: int | list[object] | None) -> object:
        if told is None:
            self.disordered = True
            return None
        if isinstance(told, int):
            if tag == b"k":
                return self.callbacks[told]
            if tag == b"w":
                return self.shared.containers[told]
            raise CodecError("a reference that is not a candidate's")
        if tag == b"E" and told[:1] == [0]:
            kind, args, more = expect(told[1:], (object, tuple, tuple))
            if not isinstance(kind, type) or kind not in TYPES.values() or not issubclass(kind, BaseException):
                raise CodecError("malformed: a class of exceptions")
            return exception(kind, args, more)
        number = told[0]
        if type(number) is not int or number < 0:
            raise CodecError("malformed: a number of an object")
        if number not in self.remotes:
            self.remotes[number] = self.described(tag, number, told[1:])
        return self.remotes[number]

    def described(self, tag: bytes, number: int, told: list[object]) -> object:
        if tag == b"H":
            flags, hashed, protocols, nature = expect(told, (int, object, int, str))
            if not (hashed is None or type(hashed) is int) or not 0 <= protocols < 2 ** len(METHODS):
                raise CodecError("malformed: a hash, or what an object has")
            return remote_class(protocols, nature)(self, number, flags, hashed)
        if tag == b"u":
            flags, content = expect(told, (int, object))
            return self.mirror(number, flags, content)
        if tag == b"X":
            name, bases = expect(told, (str, tuple))
            good = [base for base in bases if isinstance(base, type) and issubclass(base, BaseException)]
            good = [Exception if issubclass(base, BaseExceptionGroup) else base for base in good]
            return exception_class(Remote(self, number), name, tuple(dict.fromkeys(good)) or (Exception,))
        if tag != b"E":
            raise CodecError("malformed: an unknown object")
        kind, args, more = expect(told, (ExceptionType, tuple, tuple))
        made = exception(kind, args, more)
        self.exceptions[id(made)] = made, Remote(self, number)
        return made

    def mirror(self, number: int, flags: int, content: object) -> object:
        base = type(content)
        if base not in MIRRORED:
            raise CodecError("malformed: no plain data to derive from")
        kind = self.mirrors.setdefault(base, mirror_class(base))
        value = mirrored(kind, content, self, number, flags)
        if base in MUTABLE and len(self.fresh) < KEPT_FRESH:
            self.fresh.append(value)
        return value

    def ask(self, *question: object) -> tuple[str, Value]:
        """Kind and result of the answer. Raises what the candidate raised; BadReply, Untransportable, wire.Closed."""
        with self.turn:
            arguments: list[object] = []
            self.tell_changes()
            wire.send(self.requests, wire.QUESTION + self.encode(question, arguments))
            asked = len(arguments)
            kind, result, contents, keep = self.answer(arguments)
            if kind == "untransportable":
                raise self.refused(result)
            if contents is not None:
                replace(arguments[:asked], contents)
            if keep:
                own = set(map(id, contents or ()))
                self.shared.enter([it for it in arguments if id(it) not in own], self.encode)
            if self.fresh and (question[0] == "call" or (question[0] == "do" and question[1] in CHANGING)):
                self.refresh()
            if kind == "raised":
                raise result if isinstance(result, BaseException) else BadReply("malformed reply")
            return kind, result

    def answer(self, arguments: list[object]) -> Answer:
        """The answer to the question with these arguments; `arguments` goes on with the containers that are in it."""
        while True:
            try:
                message = wire.receive(self.replies)
            except wire.TooLong:
                raise self.refused(f"a value above {wire.MAX_MESSAGE // 2**20} MiB") from None
            kind = message[:1]
            noted = arguments if kind == wire.ANSWER else []
            try:
                told = decode(message, self.resolve, noted, 1)
                if kind == wire.ANSWER and well_formed(told):
                    return told
                if kind == wire.CHANGES:
                    self.take_over(told, noted)
                    continue
                number, args, pairs = expect(told, (int, tuple, tuple))
                function, kwargs = self.callbacks[number], dict(pairs)
            except (CodecError, ValueError, TypeError, LookupError):
                raise BadReply("malformed reply") from None
            if kind != wire.CALL or not callable(function):
                raise BadReply("malformed reply")
            self.shared.enter(noted, self.encode)
            noted.clear()
            wire.send(self.requests, self.run_callback(function, args, kwargs))

    def encode(self, value: object, noted: list[object] | None = None) -> bytes:
        try:
            return encode(value, self.refer, self.shared.tags(), noted)
        except CodecError as error:
            raise self.refused(str(error)) from None

    def tell_changes(self) -> None:
        """Before every message that is not such a one itself."""
        if self.shared.containers and (told := self.shared.changes(self.encode)) is not None:
            noted: list[object] = []
            wire.send(self.requests, wire.CHANGES + self.encode(told, noted))
            self.shared.settle(*told, noted, self.encode)
        if self.shared.exhausted:
            self.doubt = self.doubt or TOO_MUCH

    def take_over(self, told: object, noted: list[object]) -> None:
        gone, changed = expect(told, (tuple, tuple))
        if gone and len(gone) == len(self.shared.containers) and self.shared.work > MAX_WORK // 8:
            self.doubt = self.doubt or TOO_MUCH  # the program has given up first, whose encoding is the longer
        self.shared.take_over(changed)
        self.shared.settle(gone, changed, noted, self.encode)

    def refresh(self) -> None:
        """Copies follow their objects; those of the tester's own making do not."""
        for value in self.fresh:
            content = self.do("content", value)
            base = type(value).__mro__[1]
            if type(content) is not base:
                raise BadReply("malformed reply")
            fill(value, base, content)

    def run_callback(
        self, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> bytes:
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
        if answer[0] != "value":
            raise BadReply("malformed reply")
        return answer[1]

    def do(self, name: str, target: object, *args: object) -> Value:
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
    """Of a function of the test's: name, kind and whether it has a default."""
    try:
        told = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return tuple((it.name, int(it.kind), it.default is not it.empty) for it in told)


def stopped() -> RuntimeError:
    """As generators do (PEP 479): `all(map(test, cases))` would take the end of a test for the end of the cases."""
    return RuntimeError("the program raised StopIteration")


def replace(arguments: list[object], contents: tuple[object, ...]) -> None:
    """Change the tester's own containers, in place, to what the candidate made of its copies."""
    if len(arguments) != len(contents):
        raise BadReply("malformed reply")
    try:
        for argument, content in zip(arguments, contents, strict=True):
            fill(argument, kind_of(argument), content)
    except ValueError:
        raise BadReply("malformed reply") from None
