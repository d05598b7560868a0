"""A cell that ran to its end and yet says nothing about its model: told in its status, and marked in tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lynx_exp.store.cell_writer import CellWriter

if TYPE_CHECKING:
    from lynx_exp.run.planned_cell import Cell


def invalid_reasons(cell: Cell, writer: CellWriter, partial: str | None = None) -> list[str]:
    """In one line each. Random weights have no answers to judge. `partial`: what the model's checkpoint lacked."""
    reasons = [] if partial is None else [f"model.allow_partial: {partial}"]
    reasons += _never_acted(cell, writer)
    if _is_random(cell):
        return reasons
    for task in cell.tasks:
        rows = writer.responses(task.name)
        if task.kind != "generate" or not rows:
            continue
        if all(row["finish_reason"] == "length" for row in rows):
            reasons.append(f"{task.name}: all {len(rows)} responses were cut off by the length limit")
        if not any((row["response"] or "").strip() for row in rows):
            reasons.append(f"{task.name}: all {len(rows)} responses are empty")
    return reasons


def _never_acted(cell: Cell, writer: CellWriter) -> list[str]:
    """Tasks on which a policy for decode saw no decode step: every response a single token, or choices in one pass."""
    if cell.policy is None or cell.config.phases != "decode":
        return []
    untouched = [
        task.name for task in cell.tasks if not any(lane.live_rows for lane in writer.lanes[task.name].values())
    ]
    return [f"{name}: no decode step, {cell.config.policy_label} never acted: this is vanilla's" for name in untouched]


def _is_random(cell: Cell) -> bool:
    return cell.config.model.kind == "random"
