"""The finished cells that a verb works on; those that cannot be used are named, and count."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.exits import FAILED
from lynx_exp.results.main import print_stderr

if TYPE_CHECKING:
    from lynx_exp.store.read import CellRecord


@dataclass(frozen=True, kw_only=True)
class SelectedCells:
    cells: list[CellRecord]
    set_aside: int
    """Cells that were named instead."""

    @property
    def code(self) -> int:
        """Exit code of a verb that did all that could be done."""
        return FAILED if self.set_aside else 0


def finished(folder: Path, *, allow_changed: Collection[str] = ()) -> SelectedCells:
    """Those at or below `folder`; a line on stderr for each that is damaged or of another form. ValueError if there is
    none that can be used. `allow_changed`: as in `read_cells`."""
    from lynx_exp.store.read import read_cells

    found = read_cells(folder, allow_changed=allow_changed)
    set_aside = [record for record in found if record.set_aside is not None]
    for record in set_aside:
        print_stderr(f"set aside: {record.path}: {record.set_aside}")
    cells = [record for record in found if record.done]
    if not cells:
        whole = "no finished cell that is whole" if set_aside else "no finished cell"
        raise ValueError(f"{folder}: holds {whole}; give a cell, a study (results/STUDY) or a folder above")
    return SelectedCells(cells=cells, set_aside=len(set_aside))
