"""Paper figures, one module each; every figure is a PDF, a PNG and a CSV of its numbers."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.extensions import extended, modules

if TYPE_CHECKING:
    from analysis.study import Study

NAMES = (
    *("pareto", "active_vs_batch", "step_vs_active", "step_vs_bytes", "matched_active", "mixing"),
    *("fig2", "fig3", "fig4", "fig6", "confidence", "fig7", "fig8", "fig9", "fig17", "fig18", "table2"),
)
"""The first to be drawn, in this order; any other module of this folder with a `draw` of the same form follows. Those
with numbers are named after the figures of Lynx (arXiv 2411.08982v3) that they draw anew, and `sweeps/paper` runs what
they need."""

__path__ += extended("figures")


def names() -> tuple[str, ...]:
    """`NAMES`, the other modules of this folder that draw, and the figures of extensions. ValueError where one of those
    has the name of another."""
    here = Path(__file__).parent
    return (*NAMES, *_others(here), *modules("figures", here))


@cache
def _others(folder: Path) -> tuple[str, ...]:
    """Told by their text: importing them all would take as long as drawing."""
    paths = sorted(path for path in folder.glob("*.py") if path.stem not in (*NAMES, "__init__"))
    return tuple(path.stem for path in paths if _DRAWS.search(path.read_text(encoding="utf-8")))


_DRAWS = re.compile(r"^def draw\([^,()]+,[^,()]+,[^,()]+\)", re.MULTILINE)
"""A `draw` of a study, a folder and a suffix; `serving` draws what `lynx-results import` read."""


OF_LANES = ("mixing",)
"""Those whose settings do not tell mixes apart: they compare what is a setting each to the others."""

Track = Callable[[Sequence[str]], Iterable[str]]
"""Passes names of figures on one by one and shows how far it is."""

PAPERS = ("neurips", "icml", "mlsys", "iclr", "colm", "tmlr", "aaai")
"""Keys of `analysis.figures.style.PAPERS`, known without matplotlib."""


def draw(
    study: Study, folder: Path, *, only: str | None = None, paper: str | None = None, track: Track = iter,
    pictures: bool = False,
) -> list[Path]:  # fmt: skip
    """Draw all figures, or the one named `only`, into `folder`; returns the files written. `pictures`: PNG alone.

    `paper`: a key of PAPERS, for its column width and letters. Cells of different settings (models, number formats ...)
    never share a figure: each setting gets its own files, named after what differs. A flagged point (`analysis.guards`)
    is ringed; what is missing, and cells that ran in unlike environments, are named on every figure.
    """
    import matplotlib  # only when something is drawn: the names alone must stay cheap

    from analysis.figures import style

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    told, asked = style.WARNINGS.set(study.warnings), style.ASKED.set(only is not None)
    alone = style.PICTURES.set(pictures)
    try:
        with matplotlib.rc_context(style.RC | (style.PAPERS[paper] if paper else {})):
            for name in track(names() if only is None else (only,)):
                module = importlib.import_module(f"analysis.figures.{name}")
                settings = set(study.lanes["setting"] if name in OF_LANES else study.rows["setting"])
                for setting in sorted(settings) or [""]:
                    written += module.draw(study.of(setting), folder, _suffix(setting))
    finally:
        style.WARNINGS.reset(told)
        style.ASKED.reset(asked)
        style.PICTURES.reset(alone)
    return written


def _suffix(setting: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"-{setting}").rstrip("-") if setting else ""
