"""Which cells one loaded model runs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass

from lynx_exp.config import Config, PerNode, own_uses
from lynx_exp.run.planned_cell import Cell
from lynx_exp.store.identity import digest

SHARED = tuple(name for name, use in own_uses(Config).items() if use.pack)
"""Fields that the cells of a pack have in common: what the engine is, and which requests come in which order."""


def _of_node(value: object) -> object:
    """Equal for nodes that hold the same; what is no node stands for itself."""
    return digest(asdict(value)) if is_dataclass(value) and not isinstance(value, type) else value


def pack_groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells in packs, in the order of their first cells: those of one pack differ in policy, phases, layers and
    batch size, and in what is done beside decoding; at most `pack.max_cells` of them."""
    shared: PerNode[object, object] = PerNode(_of_node)
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        key = tuple(shared(getattr(cell.config, name)) for name in SHARED)
        groups.setdefault(key, []).append(cell)
    return [
        group[start : start + group[0].config.pack.max_cells]
        for group in groups.values()
        for start in range(0, len(group), group[0].config.pack.max_cells)
    ]
