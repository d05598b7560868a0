"""Paper figures, one module each; every figure is a PDF, a PNG and a CSV of its numbers."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("pareto", "active_vs_batch", "tpot_vs_active", "matched_active", "mixing")
"""The modules; a new figure is one more, with a `draw` of the same form."""

OF_LANES = ("mixing",)
"""Those whose `draw` takes lanes in place of rows and means: they compare what is a setting each to the others."""


def draw(
    rows: pd.DataFrame, summary: pd.DataFrame, lanes: pd.DataFrame, folder: Path, *, only: str | None = None
) -> list[Path]:
    """Draw all figures, or the one named `only`, into `folder`; returns the files written.

    `rows`, `summary` and `lanes` are those of `analysis.compare`, `analysis.macro` and `analysis.composition`. Cells of
    different settings (models, number formats ...) never share a figure: each setting gets its own files, named after
    what differs. A flagged point (`analysis.guards`) is ringed.
    """
    import matplotlib  # only when something is drawn: the names alone must stay cheap

    from analysis.figures import style

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    modules = {name: importlib.import_module(f"analysis.figures.{name}") for name in NAMES if only in (None, name)}
    with matplotlib.rc_context(style.RC):
        for setting, part in rows.groupby("setting", sort=True):
            averaged = summary[summary["setting"] == setting] if len(summary) else summary
            for name in (name for name in modules if name not in OF_LANES):
                written += modules[name].draw(part, averaged, folder, _suffix(setting))
        for name in (name for name in modules if name in OF_LANES):
            for setting in sorted(set(lanes["setting"])) or [""]:
                written += modules[name].draw(lanes[lanes["setting"] == setting], folder, _suffix(setting))
    return written


def _suffix(setting: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"-{setting}").rstrip("-") if setting else ""
