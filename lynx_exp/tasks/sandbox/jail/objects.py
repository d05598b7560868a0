"""Stand-ins in the tester's process for objects that live in the candidate's process.

There are three: a `Remote` proxy, a copy of plain data that knows its object (`mirror_class`), and an exception. They
forward attribute access, calls and operators through a `Link`.

An operator that the candidate's class defines runs only if both operands are the candidate's. Against a value of the
test it must not decide, since an object that claims to equal everything would pass every test. Such a comparison ends
the program as `Untransportable`.
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

FORWARDED_NAMES = {
    *("__name__", "__qualname__", "__doc__", "__module__", "__dict__", "__members__", "__match_args__", "__wrapped__"),
    *("__defaults__", "__kwdefaults__", "__annotations__", "__code__", "__self__", "__func__", "__version__"),
}
"""Special attributes that a test may read. The others are protocols, some of which would give access to memory."""
OWN_EQUALITY, AMONG_ITS_KIND = 2, 1
"""Flags on an object's `==`: its class defines one; it is that of a data class, which equals only its own class."""
BINARY = ["add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow"]
BINARY += ["lshift", "rshift", "and", "or", "xor"]
UNARY = ["neg", "pos", "abs", "invert", "int", "float", "complex", "index", "round", "trunc", "floor", "ceil"]
ORDER = ["lt", "le", "gt", "ge"]


class Untransportable(BaseException):
    """Something that works in one process cannot work across two. No `except Exception` of a test can catch it."""


class RemoteType(type):
    """The class of `Remote`. It refuses what would be wrong for a proxy: comparing types, and reading data fields."""

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
    """A proxy of an object in the candidate's process. It computes nothing by itself."""

    __slots__ = (
        *("_remote_flags", "_remote_hash", "_remote_link", "_remote_number", "_remote_operators", "_remote_stops"),
    )

    def __init__(self, link: Link, number: int, flags: int = 0, hashed: int | None = None) -> None:
        known = {"link": link, "number": number, "flags": flags, "hash": hashed, "operators": None, "stops": False}
        for name, value in known.items():
            object.__setattr__(self, f"_remote_{name}", value)

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__") and name.endswith("__") and name not in FORWARDED_NAMES:
            if name == "__signature__":
                return signature(self)
            raise AttributeError(name)
        attribute = self._remote_link.do("getattr", self, name)
        if name in ENDS_BY_STOPPING and is_remote(attribute):
            object.__setattr__(attribute, "_remote_stops", True)
        return attribute

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
        # a context that swallows exceptions could hide that an assertion of the test failed
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
    """Call the candidate's object."""
    return self._remote_link.call(self, args, kwargs, getattr(self, "_remote_stops", False))


def contains(self: Value, item: object) -> bool:
    """`item in self`, decided here by iterating, since a `__contains__` could claim to contain everything."""
    own = own_operators(self)
    if "__contains__" in own and not is_remote(item) and not {"__iter__", "__getitem__"} & own:
        raise self._remote_link.refused("'in' of a class of the program that cannot be iterated over")
    if "__contains__" in own and is_remote(item):
        return bool(self._remote_link.do("contains", self, item))
    return any(item is member or item == member for member in self)


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
"""Methods that a proxy has only if the object's class has them, in the order of `described.PROTOCOLS`."""
NATURES: dict[str, type] = {
    "function": types.FunctionType,
    "method": types.MethodType,
    "generator": types.GeneratorType,
    "coroutine": types.CoroutineType,
}
"""The `__class__` that a proxy may report to `isinstance`: only kinds that no test takes for a correct result."""
ENDS_BY_STOPPING = {"send", "throw", "next"}
"""Methods that may raise StopIteration, as in a plain process."""


@cache
def remote_class(protocols: int, nature: str) -> type[Remote]:
    """Make the proxy class for objects with certain methods.

    Bit i of `protocols` is set if the object's class has the i-th method of `METHODS`. `nature` is a key of `NATURES`
    or ""; another one raises KeyError.
    """
    present = [name for place, name in enumerate(METHODS) if protocols >> place & 1]
    body: dict[str, object] = {f"__{name}__": METHODS[name] for name in present}
    if "iter" not in present and "getitem" not in present:
        body["__contains__"] = METHODS["contains"]  # then `in` raises the same error as iteration
    if nature:
        kind = NATURES[nature]
        body["__class__"] = property(lambda self: kind)
    if nature == "coroutine":
        body["send"] = run_coroutine
        body["__await__"] = lambda self: iter_coroutine(self)
    for name in ("__doc__", "__module__", "__annotations__"):
        body[name] = property(partial(read_attribute, name=name))
    proxy_class: Value = RemoteType("Remote", (Remote,), body | {"__slots__": ()})
    return proxy_class


def read_attribute(remote: Value, name: str) -> object:
    """Read an attribute of the candidate's object."""
    return remote._remote_link.do("getattr", remote, name)


def run_coroutine(self: Value, _: object) -> NoReturn:
    """Run a coroutine to its end in the candidate's process; the result is in the StopIteration, as for `send`."""
    raise StopIteration(self._remote_link.do("run coroutine", self))


def iter_coroutine(self: Value) -> Iterator[object]:
    return self._remote_link.do("run coroutine", self)
    yield  # makes this function a generator


def signature(remote: Value) -> inspect.Signature:
    """The signature of the candidate's function; raises ValueError and TypeError as `inspect.signature` does."""
    parameters = []
    descriptions, returned = remote._remote_link.do("signature", remote)
    for name, kind, default, annotation in descriptions:
        optional = {"default": default, "annotation": annotation}  # each an empty tuple, or a tuple of the value
        given = {key: value[0] for key, value in optional.items() if value}
        parameters.append(inspect.Parameter(name, inspect._ParameterKind(kind), **given))
    return inspect.Signature(parameters, return_annotation=returned[0] if returned else inspect.Signature.empty)


def iter_remote(link: Link, iterator: object) -> Iterator[object]:
    """Iterate over an iterator of the candidate."""
    while True:
        try:
            item = link.do("next", iterator)
        except StopIteration:
            return
        yield item


def is_remote(value: object) -> bool:
    """Whether a value stands for an object of the candidate."""
    return hasattr(type(value), "_remote_number") or isinstance(type(value), ExceptionType)


def own_operators(value: Value) -> set[str]:
    """The special methods that the object's class defines itself, as the candidate reports them; cached."""
    if value._remote_operators is None:
        names = value._remote_link.do("operators", value)
        object.__setattr__(value, "_remote_operators", set(names if type(names) is list else ()))
    return value._remote_operators


def equal(value: Value, other: Value, otherwise: object) -> object:
    """`value == other` for an object of the candidate.

    Args:
        value: The candidate's object.
        other: Any value.
        otherwise: The result if the class defines no `==` of its own.

    Raises:
        Untransportable: The class defines `==`, and the other value is the test's.
    """
    if is_remote(other) and hasattr(type(other), "_remote_flags"):
        if not value._remote_flags and not other._remote_flags:
            return otherwise
        return value._remote_link.do("binary", value, "eq", other)
    if value._remote_flags != OWN_EQUALITY or other is None or otherwise is True:
        return otherwise
    raise value._remote_link.refused("'==' of a class of the program, with a value of the test")


def binary(name: str, base: Callable[..., Value] | None, reflected: bool = False) -> Callable[..., Value]:
    """Make a binary operator; `base` is that of the builtin type from which the object derives, if there is one."""
    special = f"__{'r' if reflected else ''}{name}__"

    def act(self: Value, other: object, *more: object) -> object:
        if is_remote(other) and not reflected and (base is None or {special, f"__r{name}__"} & own_operators(self)):
            return self._remote_link.do("binary", self, name, other)
        if special in own_operators(self):
            raise self._remote_link.refused(f"{special} of a class of the program, with a value of the test")
        return NotImplemented if base is None else base(self, other, *more)

    return act


def unary(name: str) -> Callable[..., Value]:
    """Make a unary operator, which always runs in the candidate's process."""
    return lambda self, *more: self._remote_link.do("unary", self, name, *more)


for _name in BINARY:
    setattr(Remote, f"__{_name}__", binary(_name, None))
    setattr(Remote, f"__r{_name}__", binary(_name, None, reflected=True))
for _name in ORDER:
    setattr(Remote, f"__{_name}__", binary(_name, None))
for _name in UNARY:
    setattr(Remote, f"__{_name}__", unary(_name))


def mirror_class(base: type) -> type:
    """Make the class for copies of objects that derive from `base`. The copy has the data; attributes are forwarded."""
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
    """Make a copy of `content` that stands for the candidate's object `number`; `kind` is of `mirror_class`."""
    base: Value = type(content)
    value = kind(content, content.maxlen) if base is deque else kind(content)
    for name, known in {"link": link, "number": number, "flags": flags}.items():
        base.__setattr__(value, f"_remote_{name}", known)
    return value


LINKS = "__cause__", "__context__", "__suppress_context__"
ATTRIBUTES = "filename", "filename2", "name", "path", "obj"


class ExceptionType(type):
    """The class of exception classes that the candidate defined, which tests can catch."""

    _remote: Remote

    def __getattr__(cls, name: str) -> Value:
        return getattr(cls._remote, name)

    def __call__(cls, *args: object, **kwargs: object) -> Value:
        return call(cls._remote, *args, **kwargs)


def exception_class(remote: Remote, name: str, bases: tuple[type, ...]) -> ExceptionType:
    """Make a class that stands for an exception class of the candidate; TypeError if its bases cannot be combined."""

    def getattribute(self: Value, name: str) -> object:
        entry = type(self)._remote._remote_link.exceptions.get(id(self))
        if entry is None or name.startswith("__") or name in ("args", "with_traceback", "add_note"):
            return BaseException.__getattribute__(self, name)
        return getattr(entry[1], name)

    def text(self: Value) -> str:
        entry = type(self)._remote._remote_link.exceptions.get(id(self))
        return BaseException.__str__(self) if entry is None else str(entry[1])

    body = {"_remote": remote, "__getattribute__": getattribute, "__str__": text}
    return ExceptionType("exception" if "\0" in name else name.encode(errors="replace").decode(), bases, body)


def exception(kind: Value, args: tuple[object, ...], more: tuple[Value, ...]) -> BaseException:
    """Make an exception with the arguments and further attributes of the candidate's exception."""
    error = kind.__new__(kind, *args)
    builtin = next(base for base in kind.__mro__ if not isinstance(base, ExceptionType))
    with contextlib.suppress(Exception):
        builtin.__init__(error, *args)
    error.args = args
    for name, value in more:
        if name == "__notes__":
            BaseException.add_note(error, value)
        elif name in LINKS or (name in ATTRIBUTES and type(value) in (str, bytes, int)):
            BaseException.__setattr__(error, name, value)
        else:
            raise ValueError("an attribute that exceptions do not have")
    return error
