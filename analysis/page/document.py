"""The page: its sections in order, its style and scripts inside it. Same records, same bytes."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from analysis.figures import Track
from analysis.page import page_sections as sections
from analysis.page.browse import browser
from analysis.page.chart_points import chart
from analysis.page.material import Material
from analysis.page.pictures import pictures
from analysis.page.text import escape, script_json
from analysis.study import Study, study
from analysis.verdicts import MARGIN
from lynx_exp.store.read import CellRecord, read_cells

HERE = Path(__file__).parent
SCRIPTS = ("dom.js", "chart.js", "diff.js", "samples.js", "main.js")

FindPrompts = Callable[[Sequence[CellRecord]], tuple[Mapping[str, str], Sequence[str]]]
"""Cells -> texts of prompts by their hash, and a line for each reason why some are missing."""


def no_prompts(cells: Sequence[CellRecord]) -> tuple[Mapping[str, str], Sequence[str]]:
    return {}, ()


def page(
    root: str | Path, *, find_prompts: FindPrompts = no_prompts, margin: float = MARGIN, loaded: Study | None = None,
    track: Track = iter,
) -> str:  # fmt: skip
    """The page of all cells at or below `root`.

    `loaded`: the study of `root`, where it has been read already; `margin`:
    points of accuracy that a difference is tested to be within; `track`: of the figures, as in
    `figures.draw`. Raises ValueError if the margin is not above 0, or if there is no finished cell. What the analysis
    warns of is said on the page, and not on stderr.
    """
    with _collected_warnings() as warnings:
        compared = loaded or study(root, margin)
    cells = read_cells(root)
    paths = set(compared.records.cells["path"])
    done = [cell for cell in cells if str(cell.path) in paths]
    prompts, missing = find_prompts(done)
    with _collected_warnings() as undrawn:
        drawn = pictures(compared, track)
    material = Material(
        root=Path(root), study=compared, done=done, all_cells=cells, warnings=warnings, pictures=drawn, undrawn=undrawn,
        missing_prompts=missing,
    )  # fmt: skip
    data = {"chart": chart(compared), "browser": browser(compared.records, done, prompts)}
    made = sections.all_sections(material)
    return _filled(
        title=escape(material.title),
        sections="".join(made.values()),
        navigation=sections.navigation(made),
        data=script_json(data),
    )


def _filled(**slots: str) -> str:
    """The template with its slots filled, in one pass: what stands in a slot is not looked at again."""
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # no network, and no script but this one: a second wall behind the escaping
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    slots |= {"script": script, "policy": policy, "style": (HERE / "page.css").read_text(encoding="utf-8")}
    template = (HERE / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], template)


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """What the analysis warns of meanwhile, each once."""
    lines: list[str] = []

    class WarningCollector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in lines:
                lines.append(record.getMessage())

    logger, collector = logging.getLogger("analysis"), WarningCollector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield lines
    finally:
        logger.removeHandler(collector)
