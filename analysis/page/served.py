"""Runs of a load generator that the studies keep: the table and the figure of `lynx-results import`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from analysis import serving_runs as serving
from analysis.figures import serving as figure
from analysis.page import html_parts as parts
from analysis.page.pictures import Picture, gallery, picture
from analysis.page.rich_html import HtmlConsole
from analysis.page.text import escape
from analysis.study import Study
from lynx_exp.store.read_serving import read_serving

_LEAD = (
    "Measured by vLLM's load generator against a server: times as median / 99th percentile, means over runs; the "
    "speed-up is that of the median TPOT over the stock server's under the same load, with the range over runs; "
    "experts before and after the policy are the server's own count; points are those of this study's cells."
)


def served(found: Study) -> str:
    """HTML of those that keep any; empty if none does."""
    cells = found.records.cells
    folders = {cell: Path(path).parent for cell, path in zip(cells["cell_id"], cells["path"], strict=True)}
    of = found.rows["cell_id"].map(folders)
    made = [_study(study, found.rows[of == study]) for study in dict.fromkeys(folders.values()) if read_serving(study)]
    return f'<p class="lead">{escape(_LEAD)}</p>{"".join(made)}' if made else ""


def _study(study: Path, quality: pd.DataFrame) -> str:
    rows, console = serving.frame(study, quality), HtmlConsole()
    for model, part in rows.groupby("model", sort=False):
        console.print(serving.table_of(str(model), part))
    tables = "".join(
        parts.folded(f"{escape(study.name)}: {block.title}", parts.scrolled(block.table), is_open=True)
        for block in console.blocks
    )
    return tables + gallery(_pictures(rows))


def _pictures(rows: pd.DataFrame) -> list[Picture]:
    caption = (figure.__doc__ or "").strip().replace("\n", " ")
    with tempfile.TemporaryDirectory() as folder:
        files = figure.draw(rows, Path(folder))
        return [picture("serving", file, caption) for file in files if file.suffix == ".png"]
