"""Figures for tests that look at their numbers, names and notes, not at how they are printed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

if TYPE_CHECKING:
    from analysis.figures import Track
    from analysis.page.pictures import Picture
    from analysis.study import Study

QUICK = {"pdf.fonttype": 3, "savefig.dpi": 60}
"""Fonts that nobody has to cut down to their letters, which is half of what a figure costs, and few pixels."""
_PRINTED: dict[str, object] = {}
"""What the style says instead."""


@contextmanager
def quick_figures() -> Iterator[None]:
    from analysis.figures import style

    for name in QUICK:
        _PRINTED.setdefault(name, style.RC[name])
    with _with(QUICK):
        yield


@contextmanager
def printed_figures() -> Iterator[None]:
    """As a user has them, within `quick_figures`."""
    with _with(_PRINTED):
        yield


@contextmanager
def _with(wanted: Mapping[str, object]) -> Iterator[None]:
    from analysis.figures import style

    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setitem(style.RC, name, value)
        yield


@contextmanager
def pictures_drawn_once() -> Iterator[dict[bytes, Any]]:
    """A page's pictures, drawn once for equal records and taken from there afterwards, with what was said of them;
    `lynx-results report` of a study with a damaged cell shows those of the rest, again and again."""
    from analysis.page.pictures import pictures as draw

    drawn: dict[bytes, Any] = {}
    log = logging.getLogger("analysis")

    def pictures(study: Study, track: Track = iter) -> list[Picture]:
        key = _digest(study)
        if key not in drawn:
            said = _Lines()
            log.addHandler(said)
            try:
                drawn[key] = draw(study, track), said.lines
            finally:
                log.removeHandler(said)
        else:
            for line in drawn[key][1]:
                log.warning("%s", line)
        return drawn[key][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.page.document.pictures", pictures)
        yield drawn


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _digest(study: Study) -> bytes:
    """Of all that figures are drawn from: every frame, but for where its cells lie, and the margin. What was set aside
    is said beside them."""
    whole = hashlib.sha256(f"{study.margin}".encode())
    for part in (study, study.records):
        for field in fields(part):
            frame = getattr(part, field.name)
            if isinstance(frame, pd.DataFrame):
                whole.update(f"{field.name}: {frame.drop(columns='path', errors='ignore').to_csv()}".encode())
    return whole.digest()
