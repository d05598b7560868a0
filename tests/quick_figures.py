"""Figures for tests that look at their numbers, names and notes, not at how they are printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

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
