"""Paper figures, one module each; every figure is a PDF, a PNG and a CSV of its numbers."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("pareto", "active_vs_batch", "tpot_vs_active", "matched_active")
"""The modules; a new figure is one more, with a `draw` of the same form."""


def draw(rows: pd.DataFrame, summary: pd.DataFrame, folder: Path, *, only: str | None = None) -> list[Path]:
    """Draw all figures, or the one named `only`, into `folder`; returns the files written.

    `rows` and `summary` are those of `analysis.compare` and `analysis.macro`. Cells of different settings (models,
    number formats ...) never share a figure: each setting gets its own files, named after what differs.
    """
    import matplotlib  # only when something is drawn: the names alone must stay cheap

    from analysis.figures import style

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with matplotlib.rc_context(style.RC):
        for setting, part in rows.groupby("setting", sort=True):
            averaged = summary[summary["setting"] == setting] if len(summary) else summary
            suffix = re.sub(r"[^A-Za-z0-9.]+", "-", f"-{setting}").rstrip("-") if setting else ""
            for name in NAMES if only is None else (only,):
                module = importlib.import_module(f"analysis.figures.{name}")
                written += module.draw(part, averaged, folder, suffix)
    return written
