"""What the tester sees of the candidate's objects: a `Remote`, a copy of data that knows its object, an exception.

Operators of the candidate's classes count only where both operands are the candidate's: they run in its process then.
Beside a value of the test's they are not asked, because an object that claims to equal everything would be right
everywhere; such a comparison ends the program as `Untransportable`, unless the class has no such operator of its own.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from .values import Value

if TYPE_CHECKING:
    from .remote import Link

NAMES_TO_ASK_FOR = {
    *("__name__", "__qualname__", "__doc__", "__module__", "__dict__", "__members__", "__match_args__", "__wrapped__"),
    *("__defaults__", "__kwdefaults__", "__annotations__", "__code__", "__self__", "__func__", "__version__"),
}
"""Special attributes that a test may want. All others are protocols, and some of those hand out memory."""
OWN_EQUALITY, AMONG_ITS_KIND = 2, 1
"""What is known of an object's `==`: its class defines it; it is a data class's, which differs from all others."""
BINARY = ["add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow"]
BINARY += ["lshift", "rshift", "and", "or", "xor"]
UNARY = ["neg", "pos", "abs", "invert", "int", "float", "complex", "index", "round", "trunc", "floor", "ceil"]
ORDER = ["lt", "le", "gt", "ge"]


class Untransportable(BaseException):
    """What a plain process would decide cannot be decided between two; no test can catch it by `Exception`."""


class RemoteType(type):
    def __getattr__(cls, name: str) -> NoReturn:
        if name == "__dataclass_fields__":
            raise Untransportable("fields of a data class of the program")
        raise AttributeError(name)

    def __eq__(cls, other: object) -> bool:
        if isinstance(other, Remote):
            raise Untransportable("the type of a program's object")
        return cls is other

    __hash__ = type.__hash__


class Remote(metaclass=RemoteType):
    """An object that lives in the candidate's process; it answers nothing by itself."""

    __slots__ = (
        *("_remote_flags", "_remote_hash", "_remote_link", "_remote_number", "_remote_operators", "_remote_stops"),
    )

    def __init__(self, link: Link, number: int, flags: int = 0, hashed: int | None = None) -> None:
        known = {"link": link, "number": number, "flags": flags, "hash": hashed, "operators": None, "stops": False}
        for name, value in known.items():
            object.__setattr__(self, f"_remote_{name}", value)

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__") and name.endswith("__") and name not in NAMES_TO_ASK_FOR:
            if name == "__signature__":
                return signature(self)
            raise AttributeError(name)
        found = self._remote_link.do("getattr", self, name)
        if name in ENDS_BY_STOPPING and is_remote(found):
            object.__setattr__(found, "_remote_stops", True)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        self._remote_link.do("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._remote_link.do("delattr", self, name)

    def __instancecheck__(self, instance: object) -> bool:
        return bool(self._remote_link.do("isinstance", self, instance))

    def __subclasscheck__(self, kind: object) -> bool:
        return bool(self._remote_link.do("issubclass", self, kind))

    def __enter__(self) -> Value:
        return self._remote_link.do("enter", self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        swallowed = bool(self._remote_link.do("exit", self, error)) and kind is not None
        if swallowed and not self._remote_link.leaves_nothing_out(trace):
            raise self._remote_link.refused("a context of the program that swallows exceptions")
        return swallowed

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        raise self._remote_link.refused("a class of the test that derives from one of the program")

    def __str__(self) -> str:
        return str(self._remote_link.do("str", self))

    def __repr__(self) -> str:
        return str(self._remote_link.do("repr", self))

    def __format__(self, form: str) -> str:
        return str(self._remote_link.do("format", self, form))

    def __copy__(self) -> object:
        return self._remote_link.do("copy", self)

    def __deepcopy__(self, _: object) -> object:
        return self._remote_link.do("deepcopy", self)

    def __hash__(self) -> int:
        return hash(self._remote_number) if self._remote_hash is None else self._remote_hash

    def __eq__(self, other: object) -> Value:
        return equal(self, other, self is other or NotImplemented)

    def __ne__(self, other: object) -> Value:
        same = self == other if is_remote(other) else self.__eq__(other)
        return NotImplemented if same is NotImplemented else not same


def call(self: Value, *args: object, **kwargs: object) -> Value:
    return self._remote_link.call(self, args, kwargs, getattr(self, "_remote_stops", False))


def contains(self: Value, item: object) -> bool:
    """By what it iterates over, compared here; a class's own answer would be its word alone."""
    own = own_operators(self)
    if "__contains__" in own and not is_remote(item) and not {"__iter__", "__getitem__"} & own:
        raise self._remote_link.refused("'in' of a class of the program that cannot be iterated over")
    if "__contains__" in own and is_remote(item):
        return bool(self._remote_link.do("contains", self, item))
    return any(item is found or item == found for found in self)


METHODS: dict[str, Callable[..., Value]] = {
    "call": call,
    "iter": lambda self: iter_remote(self._remote_link, self._remote_link.do("iter", self)),
    "next": lambda self: self._remote_link.do("next", self),
    "reversed": lambda self: iter_remote(self._remote_link, self._remote_link.do("reversed", self)),
    "len": lambda self: int(self._remote_link.do("len", self)),
    "bool": lambda self: bool(self._remote_link.do("bool", self)),
    "getitem": lambda self, key: self._remote_link.do("getitem", self, key),
    "setitem": lambda self, key, value: self._remote_link.do("setitem", self, key, value),
    "delitem": lambda self, key: self._remote_link.do("delitem", self, key),
    "contains": contains,
}
"""What an object has if its class has it, in the order of `described.PROTOCOLS`."""
NATURES: dict[str, type] = {
    "function": types.FunctionType,
    "method": types.MethodType,
    "generator": types.GeneratorType,
    "coroutine": types.CoroutineType,
}
"""What an object says that it is, for `isinstance`: nothing that a test could mistake for an answer."""
ENDS_BY_STOPPING = {"send", "throw", "next"}
"""Methods that may end by StopIteration in a plain process."""


@cache
def remote_class(protocols: int, nature: str) -> type[Remote]:
    """The class of objects with the methods of which `protocols` has a bit. KeyError for an unknown nature."""
    there = [name for place, name in enumerate(METHODS) if protocols >> place & 1]
    body: dict[str, object] = {f"__{name}__": METHODS[name] for name in there}
    if "iter" not in there and "getitem" not in there:
        body["__contains__"] = METHODS["contains"]  # `in` raises what iterating raises
    if nature:
        kind = NATURES[nature]
        body["__class__"] = property(lambda self: kind)
    if nature == "coroutine":
        body["send"] = run_coroutine
        body["__await__"] = lambda self: iter_coroutine(self)
    for name in ("__doc__", "__module__", "__annotations__"):
        body[name] = property(partial(ask_for, name=name))
    made: Value = RemoteType("Remote", (Remote,), body | {"__slots__": ()})
    return made


def ask_for(remote: Value, name: str) -> object:
    return remote._remote_link.do("getattr", remote, name)


def run_coroutine(self: Value, _: object) -> NoReturn:
    raise StopIteration(self._remote_link.do("run coroutine", self))


def iter_coroutine(self: Value) -> Iterator[object]:
    return self._remote_link.do("run coroutine", self)
    yield


def signature(remote: Value) -> inspect.Signature:
    """ValueError and TypeError as from `inspect.signature`."""
    made = []
    parameters, returned = remote._remote_link.do("signature", remote)
    for name, kind, default, annotation in parameters:
        told = {"default": default, "annotation": annotation}
        given = {key: value[0] for key, value in told.items() if value}
        made.append(inspect.Parameter(name, inspect._ParameterKind(kind), **given))
    return inspect.Signature(made, return_annotation=returned[0] if returned else inspect.Signature.empty)


def iter_remote(link: Link, iterator: object) -> Iterator[object]:
    while True:
        try:
            item = link.do("next", iterator)
        except StopIteration:
            return
        yield item


def is_remote(value: object) -> bool:
    return hasattr(type(value), "_remote_number") or isinstance(type(value), ExceptionType)


def own_operators(value: Value) -> set[str]:
    """The special methods that an object's class defines itself, as the candidate says."""
    if value._remote_operators is None:
        names = value._remote_link.do("operators", value)
        object.__setattr__(value, "_remote_operators", set(names if type(names) is list else ()))
    return value._remote_operators


def equal(value: Value, other: Value, otherwise: object) -> object:
    """`value == other`; `otherwise`: what it is without an operator of the class's own."""
    if is_remote(other) and hasattr(type(other), "_remote_flags"):
        if not value._remote_flags and not other._remote_flags:
            return otherwise
        return value._remote_link.do("binary", value, "eq", other)
    if value._remote_flags != OWN_EQUALITY or other is None or otherwise is True:
        return otherwise
    raise value._remote_link.refused("'==' of a class of the program, with a value of the test")


def binary(name: str, base: Callable[..., Value] | None, reflected: bool = False) -> Callable[..., Value]:
    special = f"__{'r' if reflected else ''}{name}__"

    def act(self: Value, other: object, *more: object) -> object:
        if is_remote(other) and not reflected and (base is None or {special, f"__r{name}__"} & own_operators(self)):
            return self._remote_link.do("binary", self, name, other)
        if special in own_operators(self):
            raise self._remote_link.refused(f"{special} of a class of the program, with a value of the test")
        return NotImplemented if base is None else base(self, other, *more)

    return act


def unary(name: str) -> Callable[..., Value]:
    return lambda self, *more: self._remote_link.do("unary", self, name, *more)


for _name in BINARY:
    setattr(Remote, f"__{_name}__", binary(_name, None))
    setattr(Remote, f"__r{_name}__", binary(_name, None, reflected=True))
for _name in ORDER:
    setattr(Remote, f"__{_name}__", binary(_name, None))
for _name in UNARY:
    setattr(Remote, f"__{_name}__", unary(_name))


def mirror_class(base: type) -> type:
    """A class for copies of objects that derive from `base`: data are the copy's, named things the object's."""
    exact: Value = base

    def getattribute(self: Value, name: str) -> object:
        if name.startswith(("_remote", "__")):
            return exact.__getattribute__(self, name)
        return self._remote_link.do("getattr", self, name)

    def getitem(self: Value, key: object) -> object:
        if {"__getitem__", "__missing__"} & own_operators(self):
            return self._remote_link.do("getitem", self, key)
        return exact.__getitem__(self, key)

    def eq(self: Value, other: object) -> object:
        return equal(self, other, exact.__eq__(self, other))

    def ne(self: Value, other: object) -> object:
        same = eq(self, other)
        return same if same is NotImplemented else not same

    body: dict[str, object] = {
        "_remote_number": -1,
        "__getattribute__": getattribute,
        "__setattr__": Remote.__setattr__,
        "__call__": call,
        "__str__": Remote.__str__,
        "__repr__": Remote.__repr__,
        "__eq__": eq,
        "__ne__": ne,
        "__hash__": base.__hash__,
    }
    for name in (*BINARY, *ORDER):
        if (method := getattr(base, f"__{name}__", None)) is not None:
            body[f"__{name}__"] = binary(name, method)
        if (method := getattr(base, f"__r{name}__", None)) is not None:
            body[f"__r{name}__"] = binary(name, method, reflected=True)
        else:
            body.setdefault(f"__{name}__", binary(name, None))
    if hasattr(base, "__getitem__"):
        body["__getitem__"] = getitem
    if hasattr(base, "__setitem__"):
        body |= {"__setitem__": METHODS["setitem"], "__delitem__": METHODS["delitem"]}
    body |= {"_remote_link": None, "_remote_flags": 0, "_remote_operators": None}
    return type(base.__name__, (base,), body)


def mirrored(kind: Value, content: Value, link: Link, number: int, flags: int) -> object:
    """A copy of `content` that knows the candidate's object `number`."""
    base: Value = type(content)
    value = kind(content, content.maxlen) if base is deque else kind(content)
    for name, known in {"link": link, "number": number, "flags": flags}.items():
        base.__setattr__(value, f"_remote_{name}", known)
    return value


LINKS = "__cause__", "__context__", "__suppress_context__"
ATTRIBUTES = "filename", "filename2", "name", "path", "obj"


class ExceptionType(type):
    """Classes of exceptions that the candidate defined, as tests catch them."""

    _remote: Remote

    def __getattr__(cls, name: str) -> Value:
        return getattr(cls._remote, name)

    def __call__(cls, *args: object, **kwargs: object) -> Value:
        return call(cls._remote, *args, **kwargs)


def exception_class(remote: Remote, name: str, bases: tuple[type, ...]) -> ExceptionType:
    """A class under the candidate's name for it. TypeError if Python would not have one with these bases."""

    def getattribute(self: Value, name: str) -> object:
        found = type(self)._remote._remote_link.exceptions.get(id(self))
        if found is None or name.startswith("__") or name in ("args", "with_traceback", "add_note"):
            return BaseException.__getattribute__(self, name)
        return getattr(found[1], name)

    def text(self: Value) -> str:
        found = type(self)._remote._remote_link.exceptions.get(id(self))
        return BaseException.__str__(self) if found is None else str(found[1])

    body = {"_remote": remote, "__getattribute__": getattribute, "__str__": text}
    return ExceptionType("exception" if "\0" in name else name.encode(errors="replace").decode(), bases, body)


def exception(kind: Value, args: tuple[object, ...], more: tuple[Value, ...]) -> BaseException:
    """An exception with the arguments, and the further attributes, that the candidate's has."""
    made = kind.__new__(kind, *args)
    builtin = next(base for base in kind.__mro__ if not isinstance(base, ExceptionType))
    with contextlib.suppress(Exception):
        builtin.__init__(made, *args)
    made.args = args
    for name, value in more:
        if name == "__notes__":
            BaseException.add_note(made, value)
        elif name in LINKS or (name in ATTRIBUTES and type(value) in (str, bytes, int)):
            BaseException.__setattr__(made, name, value)
        else:
            raise ValueError("an attribute that exceptions do not have")
    return made
