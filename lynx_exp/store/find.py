"""Where cells and studies are, also those of which little is left."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lynx_exp.store.sweeps import FOLDER
from lynx_exp.wording import did_you_mean

MARKS = {"cell.json", "status.json", "plan.json", "DONE"}
"""A folder with one of these is a cell's, or what is left of one."""


def find_cells(root: Path) -> tuple[list[Path], list[Path]]:
    """Folders of cells at or below `root`, also of those that no longer say what they are; and studies.

    ValueError if `root` is no folder, or holds neither a cell nor what a sweep asked for.
    """
    cells, studies = find_any_cells(root)
    if not studies:
        raise ValueError(f"{root}: holds no cell; give a cell, a study (results/STUDY) or a folder above")
    return cells, studies


def no_folder(root: Path) -> ValueError:
    """Of a folder of results that is not there, with the name of one beside it that may be meant."""
    near = [path.name for path in root.parent.glob("*") if path.is_dir()] if root.parent.is_dir() else []
    hint = did_you_mean(root.name, near)
    return ValueError(f"{root}: not a folder; give a study (results/STUDY) or a folder above{hint}")


def find_any_cells(root: Path, *, follow: bool = True) -> tuple[list[Path], list[Path]]:
    """The same; there may be none. A folder beside cells that cannot be looked into counts as one. A link to a
    cell is the cell, one to a study (with `follow`) the study, if that is not met on the way; no other is followed."""
    if not root.is_dir():
        raise no_folder(root)
    cells, studies, closed = [], set(), list[Path]()
    known = [root.resolve()]
    for place, folders, files in os.walk(root, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folder = Path(place)
        if folder.name == FOLDER and any(name.endswith(".json") for name in files):
            studies.add(folder.parent)
        elif not MARKS.isdisjoint([*files, *folders]) and not any(_is_cell_at(folder / name) for name in folders):
            cells.append(folder)
            studies.add(folder.parent)
            folders.clear()
        for link in [folder / name for name in folders if (folder / name).is_symlink()]:
            if _is_cell_at(link):  # it lies elsewhere, on a larger disk say
                cells.append(link)
                studies.add(folder)
            elif follow and (link / FOLDER).is_dir() and _is_apart(link.resolve(), known):  # so does a whole study
                known.append(link.resolve())
                more = find_any_cells(link, follow=False)
                cells += more[0]
                studies.update(more[1])
    cells += [folder for folder in closed if folder.parent in studies]
    return sorted(cells), sorted(studies)


def _is_apart(folder: Path, others: Iterable[Path]) -> bool:
    return not any(folder.is_relative_to(other) or other.is_relative_to(folder) for other in others)


def _is_cell_at(folder: Path) -> bool:
    return any(os.path.exists(folder / mark) for mark in MARKS)
