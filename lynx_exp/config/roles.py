"""What a field of the configuration is for, declared at the field itself.

A cell's hash, the question that it asks, which cells share a pack, what a table averages over: all of them read the
declarations (`uses`), and none keeps a list of field names of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_type_hints

MISSING: Any = "???"
"""omegaconf.MISSING, the default of a field that must be given; here without importing omegaconf."""

KEY = "use"
"""Of a field's metadata."""


class Role(Enum):
    """What a field is to the cell. Every field has exactly one."""

    QUESTION = "question"
    """What is asked. In the hash; cells that agree in these ask the same."""
    MEANS = "means"
    """How it is computed. In the hash, since it changes latency and last bits."""
    RECORD = "record"
    """What is measured beside it. In the hash, since a cell without lacks that record."""
    CONTENT = "content"
    """In the hash by what it leads to: the digest of the weights, so that a model may move; the digest of documents,
    prompts and generation settings, so that data may."""
    COSMETIC = "cosmetic"
    """Changes no result. Not in the hash."""


HASHED = (Role.QUESTION, Role.MEANS, Role.RECORD)
"""Roles whose values are in the hash as they stand."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """What one field is for."""

    role: Role | None
    """None for a node, whose own fields have roles."""
    paired: bool = True
    """The same in a cell and in its baseline, vanilla."""
    pack: bool = False
    """The same in all cells of a pack: it decides what the engine is, or which requests come in which order."""
    setting: int = 0
    """Tables average and draw together only what agrees in it; its place in the name of such a setting, from 1. 0: they
    do not look at it."""
    point: bool = False
    """Tells the points of one setting apart in tables and figures."""
    in_cell_json: bool = False
    """cell.json has it under the same name, as it is."""
    path: bool = False
    """May be a path, of which only the last part says what is asked."""
    transformers_only: str | None = None
    """Not None: only backend=transformers takes another value than the default, and the message says this at its
    end."""
    unless: tuple[str, tuple[object, ...]] | None = None
    """(another field, values): has no effect where that field has one of these values."""
    idle: Any = None
    """What it counts as where it has no effect."""

    def has_effect(self, flat: Mapping[str, object]) -> bool:
        """In a cell with these flat fields."""
        return self.unless is None or flat.get(self.unless[0]) not in self.unless[1]


def plain(default: object = None, *, role: Role, factory: Callable[[], object] | None = None, **use: Any) -> Any:
    """A field that `allowed` declares no limits for; `use` as in `Use`."""
    return declared(default, factory, {}, Use(role=role, **use))


def node(factory: Callable[[], object] | None = None, **use: Any) -> Any:
    """A field that holds fields of its own, those of the dataclass that `factory` makes; without one it must be
    given."""
    return declared(MISSING, factory, {}, Use(role=None, **use))


def declared(default: object, factory: Callable[[], object] | None, metadata: dict[str, object], use: Use) -> Any:
    """A dataclass field with this metadata, and its use."""
    known = metadata | {KEY: use}
    return field(default_factory=factory, metadata=known) if factory else field(default=default, metadata=known)


@cache
def uses(config: type) -> dict[str, Use]:
    """By dotted name, the use of every field below the dataclass `config`, in the order of declaration; nodes are not
    among them.

    Raises ValueError for a field that declares none.
    """
    found: dict[str, Use] = {}
    hints = get_type_hints(config)
    for each in fields(config):
        use, kind = each.metadata.get(KEY), hints[each.name]
        if isinstance(kind, type) and is_dataclass(kind):
            inner: type = kind
            found |= {f"{each.name}.{name}": own for name, own in uses(inner).items()}
        elif use is None or use.role is None:
            raise ValueError(
                f"{config.__name__}.{each.name}: has no role, so nobody knows whether it makes another cell; declare "
                f"one, as in `{each.name}: ... = plain(None, role=Role.QUESTION)` (lynx_exp/config/roles.py)"
            )
        else:
            found[each.name] = use
    return found


@cache
def own_uses(config: type) -> dict[str, Use]:
    """By name, the use of the fields of `config` itself, nodes included."""
    return {each.name: each.metadata[KEY] for each in fields(config) if KEY in each.metadata}


def departures(config: Any, prefix: str = "") -> Iterator[tuple[str, object, Use]]:
    """(dotted name, value, use) of every field below a config that has another value than its default."""
    for each in fields(config):
        value, name = getattr(config, each.name), f"{prefix}{each.name}"
        if is_dataclass(value):
            yield from departures(value, f"{name}.")
        elif value != (each.default if each.default_factory is NO_DEFAULT else each.default_factory()):
            yield name, value, each.metadata[KEY]
