"""What a JSON value must look like: a shape is a function that says what is wrong with a value, or None."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Shape = Callable[[object], str | None]
"""Value -> "FIELD: what it is, not what it should be", the field empty for the value itself; None if all is well."""

_LARGEST = 2**63
_SHOWN = 40
"""Characters of a wrong value."""


def anything(value: object) -> str | None:
    return None


def text(value: object) -> str | None:
    return None if isinstance(value, str) else wrong(value, "a text")


def flag(value: object) -> str | None:
    return None if isinstance(value, bool) else wrong(value, "true or false")


def integer(value: object) -> str | None:
    """An integer of 64 bits."""
    fits = isinstance(value, int) and not isinstance(value, bool) and -_LARGEST <= value < _LARGEST
    return None if fits else wrong(value, "a whole number")


def count(value: object) -> str | None:
    """A whole number of 0 or more."""
    return wrong(value, "a number of 0 or more") if integer(value) or (isinstance(value, int) and value < 0) else None


def number(value: object) -> str | None:
    """A finite one that a float can hold."""
    if isinstance(value, float):
        return None if math.isfinite(value) else wrong(value, "a finite number")
    return wrong(value, "a number") if integer(value) else None


def maybe(shape: Shape) -> Shape:
    """Also null."""
    return lambda value: None if value is None else shape(value)


def either(*shapes: Shape) -> Shape:
    """One of them; the last says what is wrong."""

    def check(value: object) -> str | None:
        found = None
        for shape in shapes:
            found = shape(value)
            if found is None:
                return None
        return found

    return check


def items(shape: Shape) -> Shape:
    """A list."""

    def check(value: object) -> str | None:
        if not isinstance(value, list):
            return wrong(value, "a list")
        for at, item in enumerate(value):
            if found := shape(item):
                return within(f"[{at}]", found)
        return None

    return check


def named(shape: Shape) -> Shape:
    """Names, each with a value of the shape."""

    def check(value: object) -> str | None:
        if not isinstance(value, dict):
            return wrong(value, "fields with names")
        for name, item in value.items():
            if found := shape(item):
                return within(str(name), found)
        return None

    return check


def fields(needed: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    """Fields by name; others may be there, too: another version may know more."""
    known = {**needed, **(optional or {})}

    def check(value: object) -> str | None:
        if not isinstance(value, dict):
            return wrong(value, "fields with names")
        for name in needed:
            if name not in value:
                return f"{name}: is not there"
        for name, shape in known.items():
            if name in value and (found := shape(value[name])):
                return within(name, found)
        return None

    return check


def wrong(value: object, wanted: str) -> str:
    """Of a value that is not what is wanted."""
    shown = {type(None): "null", dict: "an object", list: "a list"}.get(type(value)) or _short(value)
    return f": {shown}, not {wanted}"


def within(name: str, found: str) -> str:
    """The same fault, one level up."""
    return f"{name}{found}" if found[0] in ":[" else f"{name}.{found}"


def _short(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "an integer of more than 64 bits"
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "..."
