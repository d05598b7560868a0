"""What the page is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.page.pictures import Picture
from analysis.study import Study
from lynx_exp.store.read import CellRecord


@dataclass(kw_only=True)
class Material:
    """One folder of results, read and compared."""

    root: Path
    study: Study
    done: Sequence[CellRecord]
    """The cells of the study."""
    all_cells: Sequence[CellRecord]
    """All cells, finished or not."""
    warnings: Sequence[str]
    """What the analysis logged, besides the study's own warnings."""
    pictures: Sequence[Picture]
    undrawn: Sequence[str]
    """Why figures are missing."""
    missing_prompts: Sequence[str]
    """Why prompts are missing."""

    @property
    def title(self) -> str:
        """The study, or the folder that holds several."""
        studies = sorted(set(map(str, self.study.records.cells["study"])))
        return studies[0] if len(studies) == 1 else self.root.resolve().name
