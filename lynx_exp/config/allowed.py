"""What a field may hold, declared at the field: `__post_init__` checks it, `--help` and the reference print it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Protocol

from lynx_exp.config.choices import MOST, MOST_ROWS, at_least, one_of
from lynx_exp.config.roles import Role, Use, declared

BEYOND_REASON = MOST_ROWS
"""Bounds from here on only catch slips of the keyboard; nobody needs to read them."""

_KEY = "allowed"


class Allowed(Protocol):
    def check(self, name: str, value: object) -> None:
        """ValueError, naming the field, its value and what is allowed."""

    def __str__(self) -> str:
        """As people read it: `decode, prefill, both, none` or `1 to 1024, or null`."""


@dataclass(frozen=True)
class _Names:
    names: tuple[str, ...]
    optional: bool

    def check(self, name: str, value: object) -> None:
        if not (self.optional and value is None):
            one_of(name, value, self.names)

    def __str__(self) -> str:
        return ", ".join(self.names) + (", or null" if self.optional else "")


@dataclass(frozen=True)
class _Whole:
    low: int
    most: int
    optional: bool

    def check(self, name: str, value: Any) -> None:
        at_least(name, value, self.low, most=self.most, optional=self.optional)

    def __str__(self) -> str:
        text = f"at least {self.low}" if self.most >= BEYOND_REASON else f"{self.low} to {self.most}"
        return text + (", or null" if self.optional else "")


def choice(default: str | None, names: Sequence[str], *, role: Role, **use: Any) -> Any:
    """A field that holds one of `names`; null, too, where that is its default. `use`: as in `Use`."""
    return declared(default, None, {_KEY: _Names(tuple(names), default is None)}, Use(role=role, **use))


def integer(default: int | None, low: int, most: int = MOST, *, optional: bool = False, role: Role, **use: Any) -> Any:
    """A field that holds an integer from `low` to `most`; null, too, where that is its default or `optional`."""
    kind = _Whole(low, most, optional or default is None)
    return declared(default, None, {_KEY: kind}, Use(role=role, **use))


@cache
def allowed(config: type) -> dict[str, Allowed]:
    """Of the fields of a dataclass that declare it."""
    return {each.name: each.metadata[_KEY] for each in fields(config) if _KEY in each.metadata}


def check_fields(config: object, prefix: str = "") -> None:
    """ValueError for the first field whose value is not allowed; `prefix` stands before its name, as in `pack.`."""
    own: type = type(config)
    for name, kind in allowed(own).items():
        kind.check(f"{prefix}{name}", getattr(config, name))
