"""What is said before the first cell, once: presets that are wrong, and what `auto` and `model` came to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.run.load_tasks import drawing_of_model

if TYPE_CHECKING:
    from lynx_exp.run.planned_cell import Cell


def notes_of(cells: Sequence[Cell]) -> Iterator[str]:
    """Each once."""
    notes = [
        note
        for cell in cells
        for note in (cell.model.mismatch, cell.model.files_differ, cell.note, _sampling(cell), _mini(cell))
        if note is not None
    ]
    yield from dict.fromkeys(notes)


def _sampling(cell: Cell) -> str | None:
    """What task.generation=model came to."""
    config = cell.config
    if config.task.generation.source != "model":
        return None
    drawn = drawing_of_model(config)
    shown = ", ".join(f"{name}={value:g}" for name, value in drawn.items())
    if cell.model.declared:
        whose = f"as its preset says of its generation_config.json{config.model.checkpoint.doubt('generation')}"
    else:
        whose = "by its generation_config.json"
    return f"task.generation=model: {cell.model.name} answers with {shown}, {whose}; what is given by hand wins"


def _mini(cell: Cell) -> str | None:
    """Where a model of the hub is asked what the bundled one was trained for."""
    model, task = cell.config.model, cell.config.task.name
    if model.kind != "hub" or not task.startswith("mini_") or Path(model.id).expanduser().is_dir():
        return None
    real = task.removeprefix("mini_")
    return (
        f"{task} is made for the bundled model, and says little of {cell.model.name}; task={real} is the benchmark, "
        "and a study (+paper=NAME) takes such by itself"
    )
