"""Which cells of two sweeps ask the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from lynx_exp.store.identity import digest
from lynx_exp.store.question import SHOWN, means, question, read_config_yaml
from lynx_exp.store.read import CellRecord


@dataclass(frozen=True, kw_only=True)
class Pair:
    before: CellRecord
    after: CellRecord

    @property
    def changed_fields(self) -> dict[str, tuple[object, object]]:
        """Fields of what was asked, and how, that are not the same: before and after."""
        old, new = (
            question(config) | means(config)
            for config in (read_config_yaml(record.path) for record in (self.before, self.after))
        )
        return {name: (old.get(name), new.get(name)) for name in sorted({*old, *new}) if old.get(name) != new.get(name)}


@dataclass(frozen=True, kw_only=True)
class Matched:
    pairs: list[Pair]
    only_before: list[CellRecord]
    only_after: list[CellRecord]


Key = Callable[[CellRecord], Hashable]


def match(before: Sequence[CellRecord], after: Sequence[CellRecord]) -> Matched:
    """Pair cells that ask the same in the same way; of the rest those that ask the same; of the rest those that people
    would call the same. Where several have one key on either side, none of them is paired by it. Two cells alone are a
    pair whatever they ask."""
    if len(before) == len(after) == 1:
        return Matched(pairs=[Pair(before=before[0], after=after[0])], only_before=[], only_after=[])
    pairs: list[Pair] = []
    left, right = _latest(before), _latest(after)
    for key in (_exactly, _the_same, _by_name):
        mine, theirs = _unique(left, key), _unique(right, key)
        found = [Pair(before=cell, after=theirs[value]) for value, cell in mine.items() if value in theirs]
        taken = {id(cell) for pair in found for cell in (pair.before, pair.after)}
        left, right = ([cell for cell in side if id(cell) not in taken] for side in (left, right))
        pairs += found
    order = {id(cell): at for at, cell in enumerate(before)}
    pairs.sort(key=lambda pair: order[id(pair.before)])
    return Matched(pairs=pairs, only_before=left, only_after=right)


def _latest(cells: Sequence[CellRecord]) -> list[CellRecord]:
    """One of each question and way: a sweep that ran again after a change of code left two."""
    chosen: dict[Hashable, CellRecord] = {}
    for cell in cells:
        key = _exactly(cell)
        if key not in chosen or str(cell.status.get("finished")) >= str(chosen[key].status.get("finished")):
            chosen[key] = cell
    kept = {id(cell) for cell in chosen.values()}
    return [cell for cell in cells if id(cell) in kept]


def _exactly(cell: CellRecord) -> Hashable:
    config = read_config_yaml(cell.path)
    key = [question(config), means(config)] if config else [cell.info["cell_id"]]
    return digest([key, cell.info.get("dtype"), cell.info.get("device")])


def _the_same(cell: CellRecord) -> Hashable:
    config = read_config_yaml(cell.path)
    return digest(question(config) if config else cell.info["cell_id"])


def _by_name(cell: CellRecord) -> Hashable:
    return digest([cell.info.get(name) for name in SHOWN])


def _unique(cells: Sequence[CellRecord], key: Key) -> dict[Hashable, CellRecord]:
    keys = {id(cell): key(cell) for cell in cells}
    times = Counter(keys.values())
    return {keys[id(cell)]: cell for cell in cells if times[keys[id(cell)]] == 1}
