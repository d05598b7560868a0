"""A cell that ran to its end and yet says nothing about its model: told in its status, and marked in tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_exp.store.cell import CellWriter

if TYPE_CHECKING:
    from lynx_exp.launch.cell import Cell


def invalid_reasons(cell: Cell, writer: CellWriter) -> list[str]:
    """In one line each. Random weights have no answers to judge."""
    if _is_random(cell):
        return []
    reasons = []
    for task in cell.tasks:
        rows = writer.responses(task.name)
        if task.kind != "generate" or not rows:
            continue
        if all(row["finish_reason"] == "length" for row in rows):
            reasons.append(f"{task.name}: all {len(rows)} responses were cut off by the length limit")
        if not any((row["response"] or "").strip() for row in rows):
            reasons.append(f"{task.name}: all {len(rows)} responses are empty")
    return reasons


def _is_random(cell: Cell) -> bool:
    return cell.config.model.kind == "random"
