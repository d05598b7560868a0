"""Fixtures: made-up cells on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_study import POLICIES, write_cell, write_study

from tests.quick_figures import quick_figures


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """What looks at how a figure is printed draws it within `printed_figures`."""
    with quick_figures():
        yield


@pytest.fixture
def cell(tmp_path: Path) -> Callable[..., Path]:
    """Writes one cell below `tmp_path`."""
    return lambda **options: write_cell(tmp_path, **options)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five policies, four tasks, two batch sizes. Read only: tests write elsewhere."""
    chosen = [POLICIES[index] for index in (2, 0, 1, 6, 5)]
    return write_study(tmp_path_factory.mktemp("results"), policies=chosen, documents=32)


@pytest.fixture(scope="session")
def study_page(study: Path) -> str:
    """The HTML report of `study`, with figures."""
    from analysis.page.document import page

    return page(study, find_prompts=lambda cells: ({"None": "asked"}, ["a reason"]))
