"""Values of the standard library and of NumPy that cross between the processes as what they are, by name and parts.

Both sides make them with their own classes, from parts that are exact types: nothing of the other side's runs.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections import Counter, OrderedDict, UserDict, UserList, UserString, defaultdict, deque
from collections.abc import Callable, ItemsView, KeysView, Sequence, ValuesView
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol, TypeAlias, TypeGuard, TypeVar, overload

Value: TypeAlias = Any
"""An object of a program or a test that is used as what it is: its attributes are looked up, it is called, added ...
What is only handed on, or asked for its type, is an `object`."""
First = TypeVar("First")
Second = TypeVar("Second")
Third = TypeVar("Third")
Fourth = TypeVar("Fourth")

DATA_TYPES: tuple[type, ...] = (
    *(bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, slice, object, type),
    *(type(None), Counter, OrderedDict, defaultdict, deque, date, datetime, time, timedelta, Decimal, Fraction),
)
EXCEPTIONS = tuple(
    kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, BaseException)
)
TYPES = {f"{kind.__module__}.{kind.__name__}": kind for kind in (*DATA_TYPES, *EXCEPTIONS)}
"""Classes that are values themselves, the same on both sides."""

MAPPINGS: dict[str, type] = {"Counter": Counter, "OrderedDict": OrderedDict, "defaultdict": defaultdict}
KEYS: type = type({}.keys())
ITEMS: type = type({}.items())
LISTED: type = type({}.values())
ORDERED_VIEWS = tuple(map(type, (OrderedDict().keys(), OrderedDict().items(), OrderedDict().values())))


class Array(Protocol):
    """What is asked of NumPy's arrays of plain elements."""

    dtype: Value
    shape: tuple[int, ...]

    def tobytes(self) -> bytes: ...

    def __getitem__(self, key: object) -> object: ...

    def __setitem__(self, key: object, value: object) -> None: ...


def zone(value: datetime | time, moment: datetime | None) -> object:
    """A time zone as a part: None, the key of a zone with rules, else the fixed offset that holds at `moment`."""
    found = value.tzinfo
    if found is None:
        return None
    key = getattr(found, "key", None)
    if type(found).__module__ == "zoneinfo" and type(key) is str:
        return key
    offset = type(found).utcoffset(found, moment)
    return offset if offset is None else [offset, str(type(found).tzname(found, moment))]


def made_zone(part: object) -> tzinfo | None:
    if part is None:
        return None
    if type(part) is str:
        import zoneinfo  # only where a program uses one: it looks for files

        return zoneinfo.ZoneInfo(part)
    offset, name = expect(part, (timedelta, str))
    return timezone(offset) if timezone(offset).tzname(None) == name else timezone(offset, name)


def clock(value: datetime | time) -> list[int]:
    return [value.hour, value.minute, value.second, value.microsecond, value.fold]


TO_PARTS: dict[type, Callable[[Value], list[object]]] = {
    Decimal: lambda value: ["decimal", Decimal.__str__(value)],
    Fraction: lambda value: ["fraction", int(value.numerator), int(value.denominator)],
    timedelta: lambda value: ["timedelta", value.days, value.seconds, value.microseconds],
    date: lambda value: ["date", value.year, value.month, value.day],
    datetime: lambda value: [
        *("datetime", value.year, value.month, value.day, *clock(value)),
        zone(value, datetime.replace(value)),
    ],
    time: lambda value: ["time", *clock(value), zone(value, None)],
    timezone: lambda value: ["timezone", timezone.utcoffset(value, None), timezone.tzname(value, None)],
    slice: lambda value: ["slice", value.start, value.stop, value.step],
    type(Ellipsis): lambda value: ["Ellipsis"],
    type(NotImplemented): lambda value: ["NotImplemented"],
    KEYS: lambda value: ["keys", list(value)],
    ITEMS: lambda value: ["items", list(value)],
    LISTED: lambda value: ["values", list(value)],
    ORDERED_VIEWS[0]: lambda value: ["keys", list(value)],
    ORDERED_VIEWS[1]: lambda value: ["items", list(value)],
    ORDERED_VIEWS[2]: lambda value: ["values", list(value)],
    KeysView: lambda value: ["keys", list(value)],
    ItemsView: lambda value: ["items", list(value)],
    ValuesView: lambda value: ["values", list(value)],
    UserList: lambda value: ["UserList", list(value.data)],
    UserDict: lambda value: ["UserDict", dict(value.data)],
    UserString: lambda value: ["UserString", str(value.data)],
}
"""Exact type (or first base with an entry) -> name and parts."""

FROM_PARTS: dict[str, tuple[list[type], Callable[..., Value]]] = {
    "decimal": ([str], Decimal),
    "fraction": ([int, int], Fraction),
    "timedelta": ([int] * 3, timedelta),
    "date": ([int] * 3, date),
    "datetime": ([int] * 8 + [object], lambda *p: datetime(*p[:7], fold=p[7], tzinfo=made_zone(p[8]))),  # type: ignore[misc]
    "time": ([int] * 5 + [object], lambda *p: time(*p[:4], fold=p[4], tzinfo=made_zone(p[5]))),  # type: ignore[misc]
    "timezone": ([timedelta, str], lambda *p: made_zone(list(p))),
    "slice": ([object] * 3, slice),
    "Ellipsis": ([], lambda: Ellipsis),
    "NotImplemented": ([], lambda: NotImplemented),
    "keys": ([list], lambda names: dict.fromkeys(names).keys()),
    "items": ([list], lambda pairs: dict(pairs).items()),
    "values": ([list], lambda items: dict(enumerate(items)).values()),
    "UserList": ([list], UserList),
    "UserDict": ([dict], UserDict),
    "UserString": ([str], UserString),
    "type": ([str], lambda name: TYPES[name]),
    "number": ([str, bytes], lambda kind, data: numpy_array(kind, [], data)[()]),
    "objects": ([list, list], lambda shape, items: object_array(shape, items)),
    "numpy type": ([str], lambda name: numpy_type(name)),
    "dtype": ([str], lambda name: numpy_dtype(name)),
}
NUMPY_KINDS = "biufcSUmM"


def numpy_parts(value: Value) -> list[object] | None:
    """Name and parts of what NumPy knows; None for anything else, subclasses of arrays included."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(numpy, "ndarray"):
        return None
    if isinstance(value, type):
        known = issubclass(value, numpy.generic) and getattr(numpy, value.__name__, None) is value
        return ["numpy type", value.__name__] if known else None
    if isinstance(value, numpy.dtype):
        return ["dtype", value.str] if value.kind in NUMPY_KINDS else None
    if isinstance(value, numpy.generic) and type(value).__module__ == "numpy" and value.dtype.kind in NUMPY_KINDS:
        return ["number", value.dtype.str, value.tobytes()]
    if type(value) is not numpy.ndarray or value.dtype.kind != "O":
        return None
    return ["objects", list(value.shape), list(value.flat)]


def is_array(value: Value) -> TypeGuard[Array]:
    """Whether it is one of NumPy's arrays of plain elements, which are containers; not one of a class of its own."""
    numpy = sys.modules.get("numpy")
    return type(value) is getattr(numpy, "ndarray", None) and value.dtype.kind in NUMPY_KINDS


def numpy_dtype(name: str) -> Value:
    dtype = importlib.import_module("numpy").dtype(name)
    if dtype.kind not in NUMPY_KINDS or dtype.str != name:
        raise ValueError("not a type of plain elements")
    return dtype


def numpy_type(name: str) -> type:
    numpy = importlib.import_module("numpy")
    found = getattr(numpy, name)
    if not (isinstance(found, type) and issubclass(found, numpy.generic)):
        raise ValueError("not a type of NumPy's numbers")
    return found


def numpy_array(kind: str, shape: Sequence[object], data: bytes) -> Array:
    """A copy: what comes from bytes alone could not be written to."""
    numpy = importlib.import_module("numpy")
    dtype = numpy_dtype(kind)
    if dtype.itemsize == 0:
        if data:
            raise ValueError("bytes of an array of nothing")
        return numpy.zeros(shape, dtype)
    return numpy.frombuffer(data, dtype).reshape(expect(shape, [int] * len(shape))).copy()


def object_array(shape: list[object], items: list[object]) -> Array:
    numpy = importlib.import_module("numpy")
    made = numpy.empty(len(items), dtype=object)
    for place, item in enumerate(items):
        made[place] = item
    return made.reshape(expect(shape, [int] * len(shape)))


def made(name: str, parts: list[object]) -> object:
    kinds, make = FROM_PARTS[name]
    checked = expect(parts, kinds)
    value = make(*checked)
    if name == "keys" and len(value) != len(checked[0]):
        raise ValueError("a key twice")
    return value


@overload
def expect(items: object, kinds: tuple[type[First], type[Second]]) -> tuple[First, Second]: ...
@overload
def expect(items: object, kinds: tuple[type[First], type[Second], type[Third]]) -> tuple[First, Second, Third]: ...
@overload
def expect(
    items: object, kinds: tuple[type[First], type[Second], type[Third], type[Fourth]]
) -> tuple[First, Second, Third, Fourth]: ...
@overload
def expect(items: object, kinds: list[type]) -> tuple[Value, ...]: ...
def expect(items: object, kinds: Sequence[type]) -> tuple[object, ...]:
    """`items` if they are as many as `kinds`, and each of exactly its type (of any for `object`); else ValueError."""
    if not isinstance(items, (list, tuple)) or len(items) != len(kinds):
        raise ValueError("not so many parts")
    if any(kind is not object and type(item) is not kind for item, kind in zip(items, kinds, strict=True)):
        raise ValueError("parts of the wrong type")
    return tuple(items)
