"""One study for all verbs, run once a process, and copies of it to damage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lynx_exp.store.claims import Claims
from tests.quick_figures import quick_figures
from tests.verbs.study import run_study
from tests.verbs.sweep import Sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    with quick_figures():
        yield


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return run_study(tmp_path_factory.mktemp("ran"))


@pytest.fixture
def study(ran: Path, tmp_path: Path) -> Path:
    shutil.copytree(ran, tmp_path / "default")
    return tmp_path / "default"


@pytest.fixture
def run_python() -> Callable[[str], None]:
    """In a process of its own; what it says on stderr is why it failed."""

    def run(code: str) -> None:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture
def claims() -> Iterator[Claims]:
    claims = Claims()
    yield claims
    claims.close()


@pytest.fixture
def sweep(tmp_path: Path, claims: Claims) -> Sweep:
    return Sweep(tmp_path, claims)
