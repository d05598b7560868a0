"""Mutable containers that both processes hold: the same one on both sides, as far as either can tell.

A list, dict, set, bytearray, deque or array that crosses is a copy. Where the candidate keeps its own after the answer
(in an object, a global name, a cache), as the counts of references show, both sides enter the pair here under the same
number. From then on it crosses as that number, and each side tells the other before its next message what it has
changed. What one side holds no longer, both forget: in most programs nothing is ever entered.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable, Iterator

from .values import Array, Value, is_array

COPIED = list, dict, set, bytearray, deque
ATOMS = frozenset({int, float, str, bytes, bool, complex, type(None)})
MAX_WORK = 2**25
"""Bytes that a side encodes to find what has changed, before it gives that up: a fraction of a program's time."""

Encode = Callable[[object, list[object]], bytes]
"""Of the content of a container; new containers in it are added to the list."""


def is_container(value: object) -> bool:
    return isinstance(value, COPIED) or is_array(value)


def children(value: Value) -> list[object]:
    """What a container holds and could be changed in its turn, or holds something that could."""
    if isinstance(value, (bytearray, set, frozenset)) or is_array(value):
        return []  # no item of a set is mutable, but for a tuple of objects
    items = list(dict.values(value)) if isinstance(value, dict) else list(iter_plain(value))
    if ATOMS.issuperset(map(type, items)):
        return []
    return [item for item in items if isinstance(item, tuple) or is_container(item)]


def iter_plain(value: list[object] | tuple[object, ...] | deque[object]) -> Iterator[object]:
    if isinstance(value, list):
        return list.__iter__(value)
    return tuple.__iter__(value) if isinstance(value, tuple) else deque.__iter__(value)


def counts(values: Iterable[object]) -> list[int]:
    return [sys.getrefcount(value) for value in values]


ALONE = counts([[]])[0]
"""What it says of a value that is nowhere but in `values`."""


def held(known: Container[int], *roots: Iterable[object]) -> bool:
    """Whether anything but `roots` and what is in them refers to a mutable container in them; those with an id in
    `known` aside."""
    seen: list[object] = []
    references: dict[int, int] = {}
    todo: list[object] = [item for root in roots for item in root if isinstance(item, tuple) or is_container(item)]
    found = False
    while todo:
        value = todo.pop()
        if id(value) in known:
            continue
        references[id(value)] = references.get(id(value), 0) + 1
        if references[id(value)] == 1:
            seen.append(value)
            found = found or not isinstance(value, tuple)
            todo += children(value)
    value = None
    return found and any(there > references[id(value)] + ALONE for value, there in zip(seen, counts(seen), strict=True))


class Shared:
    """One side's half of the pairs."""

    def __init__(self) -> None:
        self.containers: dict[int, object] = {}
        self.numbers: dict[int, int] = {}
        """Number of a container by its id."""
        self.known: dict[int, bytes] = {}
        """What the other side has, as this side encodes it."""
        self.next = 0
        self.work = 0

    def enter(self, containers: list[object], encode: Encode) -> None:
        """Both sides enter the same containers in the same order."""
        new = []
        for container in containers:
            if id(container) not in self.numbers:
                self.numbers[id(container)] = self.next
                self.containers[self.next] = container
                new.append(self.next)
                self.next += 1
        for number in new:
            self.known[number] = encode(copy.copy(self.containers[number]), [])

    def tags(self) -> dict[int, int]:
        """As `codec.encode` takes numbers of containers that are not the message's own."""
        return {key: ~number for key, number in self.numbers.items()}

    def changes(self, encode: Encode) -> tuple[tuple[int, ...], tuple[tuple[int, object], ...]] | None:
        """Numbers to be forgotten, and new contents by number; None if there is nothing to tell."""
        changed = []
        for number, container in self.containers.items():
            content = copy.copy(container)
            data = encode(content, [])
            self.work += len(data) + 64
            if data != self.known[number]:
                changed.append((number, content))
        container = None
        gone = tuple(self.containers) if self.exhausted else self.let_go()
        return (gone, tuple(changed)) if gone or changed else None

    @property
    def exhausted(self) -> bool:
        return self.work > MAX_WORK

    def let_go(self) -> tuple[int, ...]:
        """The numbers of what nothing else here refers to."""
        there = counts(self.containers.values())
        return tuple(number for number, count in zip(self.containers, there, strict=True) if count <= ALONE)

    def settle(
        self, gone: Iterable[int], changed: Iterable[tuple[int, object]], noted: list[object], encode: Encode
    ) -> None:
        """Once changes were told, or taken over: what they brought with them is shared as well."""
        contents = {id(content) for _, content in changed}
        self.enter([container for container in noted if id(container) not in contents], encode)
        for number, _ in changed:
            self.known[number] = encode(copy.copy(self.containers[number]), [])
        self.forget(gone)

    def take_over(self, changed: Iterable[tuple[int, object]]) -> None:
        """ValueError for what is not a new content of a known container."""
        for number, content in changed:
            container = self.containers[number]
            fill(container, kind_of(container), content)

    def forget(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            container = self.containers.pop(number)
            del self.numbers[id(container)], self.known[number]


def kind_of(container: object) -> type:
    return type(container) if is_array(container) else next(kind for kind in COPIED if isinstance(container, kind))


def fill(container: Value, kind: Value, content: Value) -> None:
    """Change a container in place. ValueError if `content` is not of its kind, or an array that it cannot become."""
    if not isinstance(content, kind):
        raise ValueError("another kind of container")
    if kind in (list, bytearray):
        kind.__setitem__(container, slice(None), content)
    elif is_array(container):
        fill_array(container, content)
    else:
        exact: Value = OrderedDict if isinstance(container, OrderedDict) else kind  # whose order is its own
        exact.clear(container)
        (deque.extend if kind is deque else exact.update)(container, content)


def fill_array(container: Array, content: Array) -> None:
    if container.dtype != content.dtype:
        raise ValueError("an array of another type")
    if container.shape != content.shape:
        container.shape = content.shape  # ValueError for another size: views of it would look at freed memory
    container[...] = content
