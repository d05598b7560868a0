"""One study for all verbs, run once a process, and copies of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.verbs.study import run_study


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return run_study(tmp_path_factory.mktemp("ran"))


@pytest.fixture
def study(ran: Path, tmp_path: Path) -> Path:
    shutil.copytree(ran, tmp_path / "default")
    return tmp_path / "default"
