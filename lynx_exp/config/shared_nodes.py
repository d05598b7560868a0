"""The nodes of many configs that share them, each looked at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Generic, TypeVar

from lynx_exp.config.cell import Config

Node = TypeVar("Node")
Made = TypeVar("Made")


class PerNode(Generic[Node, Made]):
    """`make(node)`, called once for each node object, which is kept alive: a sweep's configs share most of theirs."""

    def __init__(self, make: Callable[[Node], Made]) -> None:
        self._make = make
        self._known: dict[int, tuple[Node, Made]] = {}

    def __call__(self, node: Node) -> Made:
        found = self._known.get(id(node))
        if found is None:
            found = self._known[id(node)] = (node, self._make(node))
        return found[1]


class AsDict:
    """`asdict(config)` for many configs; what it gives is shared, and not to be changed."""

    def __init__(self) -> None:
        self._node: PerNode[Any, dict[str, object]] = PerNode(asdict)
        self._names = [field.name for field in fields(Config)]

    def __call__(self, config: Config) -> dict[str, object]:
        values = ((name, getattr(config, name)) for name in self._names)
        return {name: self._node(value) if is_dataclass(value) else value for name, value in values}
