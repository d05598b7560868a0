"""What a command sets out to run, in the folder of each study: kept unless the command turns out to be refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lynx_exp.run.planned_cell import Cell
from lynx_exp.store.provenance import scrub
from lynx_exp.store.sweeps import SweepCell, sweep_file, write_sweep


@contextmanager
def recorded_sweeps(cells: Sequence[Cell]) -> Iterator[None]:
    """Write a record of the cells into each study's folder. A ValueError in here takes back those that are new and of
    which no cell was begun: the command was refused, and nobody will miss its cells.

    ValueError if nothing can be written there.
    """
    new: list[Path] = []
    for study in dict.fromkeys(cell.study for cell in cells):
        asked = [
            SweepCell(folder=cell.folder.name, name=cell.name, requests=sum(len(task.requests) for task in cell.tasks))
            for cell in cells
            if cell.study == study
        ]
        if not (path := sweep_file(study, asked)).exists():
            new.append(path)
        try:
            write_sweep(study, asked, [Path(sys.argv[0]).name, *map(scrub, sys.argv[1:])])
        except OSError as error:
            raise ValueError(f"results={study.parent}: cannot be written to: {error.strerror or error}") from error
    try:
        yield
    except ValueError:
        for path in new:
            study = path.parent.parent
            folders = [cell.folder for cell in cells if cell.study == study]
            if not any(file.is_file() for folder in folders for file in folder.rglob("*")):
                _take_back(path, folders)
        raise


def _take_back(path: Path, folders: Sequence[Path]) -> None:
    """The record, and the folders that are empty without it: those of its cells, its own, and the study's."""
    path.unlink(missing_ok=True)
    for folder in (*folders, path.parent, path.parent.parent):
        with suppress(OSError):  # one that holds anything stays
            folder.rmdir()
