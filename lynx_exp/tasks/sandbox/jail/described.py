"""What the candidate's process says of objects that are not plain data, and what it makes of the tester's."""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Callable

from .codec import MIRRORED, Refer, Reference, encode
from .values import EXCEPTIONS, Value

OWN_EQUALITY, AMONG_ITS_KIND = 2, 1  # as in `objects`, which the candidate need not have
PROTOCOLS = ("call", "iter", "next", "reversed", "len", "bool", "getitem", "setitem", "delitem", "contains")
"""Special methods that are there, for a tester's question whether they are, if the object's class has them."""
NATURES: dict[type, str] = {
    types.FunctionType: "function",
    types.MethodType: "method",
    types.GeneratorType: "generator",
    types.CoroutineType: "coroutine",
}
CALLABLES = (types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType)
"""Equal to nothing but another of their kind: `return len` for `return len(x)` is wrong, and no matter of transport."""
MAX_CHAIN = 20
"""Exceptions that are told of as cause and context of one."""
ATTRIBUTES = ("filename", "filename2", "name", "path", "obj")
"""What builtin exceptions have besides their arguments."""

LIBRARIES = ("math", "cmath", "statistics", "operator", "itertools", "functools", "copy", "numpy")
"""Of functions of these the tester takes its own, where a test uses them by names that the candidate imported."""

CallBack = Callable[[int, tuple[object, ...], dict[str, object]], object]


Parameter = tuple[str, int, bool]
"""Of a function of the tester's: name, kind (as `int` gives it), whether there is a default."""


class Describer:
    def __init__(self, call_back: CallBack) -> None:
        self.call_back = call_back
        self.objects: list[object] = [None]
        self.numbers: dict[int, int] = {}
        self.protocols: dict[int, tuple[type, int]] = {}
        self.foreign: dict[int, object] = {}
        """The tester's functions, exceptions and their classes, as they are here."""
        self.foreign_numbers: dict[int, int] = {}
        self.first: dict[int, Reference] = {}
        """What the question that was decoded last told of the tester's objects."""
        self.chained = False

    def number(self, value: object) -> int:
        """A number of its own, from 1 on; the object is kept, so that its number stays."""
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return number

    def refer(self, value: object) -> Reference:
        """What stands for a value that is not plain data."""
        if (foreign := self.foreign_numbers.get(id(value))) is not None:
            return b"k", foreign
        kind = type(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            bases = (base for base in type.__dict__["__bases__"].__get__(value) if issubclass(base, BaseException))
            return b"X", [self.number(value), type.__dict__["__name__"].__get__(value), tuple(bases)]
        if isinstance(value, BaseException):
            return b"E", self.exception(value)
        flags, hashed = equality(value, object), None
        if flags and kind.__hash__ is not None:
            with contextlib.suppress(Exception):
                hashed = hash(value)
        return b"H", [self.number(value), flags, hashed, self.protocols_of(value), NATURES.get(kind, "")]

    def mirror(self, value: object, base: type) -> list[object]:
        return [self.number(value), equality(value, base)]

    def exception(self, value: BaseException) -> list[object]:
        kind = type(value)
        more: list[tuple[str, object]] = []
        if isinstance(value, (OSError, ImportError, NameError, AttributeError)):
            for name in ATTRIBUTES:
                with contextlib.suppress(Exception):
                    told = BaseException.__getattribute__(value, name)
                    more += [(name, told)] if type(told) in (str, bytes, int) else []
        if notes := BaseException.__getattribute__(value, "__dict__").get("__notes__"):
            more += [("__notes__", note) for note in notes if type(note) is str]
        if self.chained:
            for name in ("__cause__", "__context__", "__suppress_context__"):
                if told := BaseException.__getattribute__(value, name):
                    more.append((name, told))
        args = BaseException.args.__get__(value)  # type: ignore[attr-defined]
        return [0 if kind in EXCEPTIONS else self.number(value), kind, self.plain(args), tuple(more)]

    def plain(self, args: tuple[object, ...]) -> tuple[object, ...]:
        """An exception's arguments, if they can cross."""
        chained, self.chained = self.chained, False
        try:
            encode(args, self.refer, None, None, self.mirror)
        except Exception:
            return ()
        finally:
            self.chained = chained
        return args

    def protocols_of(self, value: object) -> int:
        """A bit for each of `PROTOCOLS` that the object's class has."""
        kind = type(value)
        known = self.protocols.get(id(kind))
        if known is None:
            names = [name for base in type.__dict__["__mro__"].__get__(kind) for name in base.__dict__.items()]
            there = {name for name, method in reversed(names) if method is not None}
            bits = sum(1 << place for place, name in enumerate(PROTOCOLS) if f"__{name}__" in there)
            known = self.protocols[id(kind)] = kind, bits
        bits = known[1]
        if isinstance(value, type) and hasattr(value, "__class_getitem__"):
            bits |= 1 << PROTOCOLS.index("getitem")
        return bits

    def resolve(self, tag: bytes, told: int | list[Value] | None) -> object:
        if isinstance(told, int):
            return self.objects[told] if tag == b"h" else self.foreign[told]
        if told is None:  # another order of a set, by which nothing is judged here
            return None
        number, *rest = told
        made = self.made(tag, number, *rest)
        self.foreign[number], self.foreign_numbers[id(made)] = made, number
        self.first[number] = tag, told
        return made

    def made(self, tag: bytes, number: int, *told: Value) -> object:
        if tag == b"K":
            return self.function(number, *told)
        if tag == b"X":
            name, bases = told
            return type(name, bases, {"__module__": "test"})
        kind, args = told
        try:
            return kind(*args)
        except Exception:
            made = kind.__new__(kind, *args)
            made.args = args
            return made

    def function(
        self, number: int, name: str, qualname: str, doc: str, parameters: tuple[Parameter, ...] | None
    ) -> Callable[..., object]:
        """A function that stands for the tester's."""

        def function(*args: object, **kwargs: object) -> object:
            return self.call_back(number, args, kwargs)

        function.__name__, function.__qualname__, function.__doc__ = name, qualname, doc or None
        function.__module__ = "test"
        if parameters is not None:
            function.__signature__ = signature(parameters)  # type: ignore[attr-defined]
        return function

    def as_asked(self, first: dict[int, Reference]) -> Refer:
        """`refer` as the tester had it in a question, with what it told then."""

        def refer(value: object) -> Reference:
            if (foreign := self.foreign_numbers.get(id(value))) is None:
                return b"h", self.numbers.get(id(value), 0)  # 0: an object that the call has made
            return first.pop(foreign, (b"k", foreign))

        return refer


def signature(parameters: tuple[Parameter, ...]) -> inspect.Signature:
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect._ParameterKind(kind), default=None if optional else inspect.Parameter.empty)
            for name, kind, optional in parameters
        ]
    )


def acyclic(error: BaseException) -> bool:
    """Whether an exception's causes and contexts are few, and no circle."""
    todo, seen = [error], 0
    while todo and seen <= MAX_CHAIN:
        value = todo.pop()
        seen += 1
        links = (BaseException.__getattribute__(value, name) for name in ("__cause__", "__context__"))
        todo += [link for link in links if link is not None]
    return not todo


def equality(value: object, below: type) -> int:
    """Whether a class before `below` says what is equal to its objects, as `objects` has it."""
    for base in type.__dict__["__mro__"].__get__(type(value)):
        if base is below:
            break
        if base in CALLABLES:
            return AMONG_ITS_KIND
        if "__eq__" in base.__dict__:
            code = getattr(base.__dict__["__eq__"], "__code__", None)
            generated = "__dataclass_fields__" in base.__dict__ and getattr(code, "co_filename", "") == "<string>"
            return AMONG_ITS_KIND if generated else OWN_EQUALITY
    return 0


def operators(value: object) -> list[str]:
    """Special methods of the object's own classes, before plain data or `object`."""
    names: dict[str, None] = {}
    for base in type.__dict__["__mro__"].__get__(type(value)):
        if base is object or base in MIRRORED:
            break
        names |= dict.fromkeys(name for name in base.__dict__ if type(name) is str and name.startswith("__"))
    return list(names)


def library_name(value: object, name: str) -> str:
    """The one of `LIBRARIES` that has this function under `name`; '' for none."""
    if isinstance(value, type) or not callable(value):
        return ""
    return next((it for it in LIBRARIES if getattr(sys.modules.get(it), name, None) is value), "")
