"""docs/howto/your-*.md, followed to the letter in a copy of this repository: what was added works, and no test that
enumerates policies, tasks, figures or families has to be told."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.additions.pages import ROOT, commands_of, files_of, run, text_of, type_command, write
from tests.additions.swapped_model import write_checkpoint
from tests.additions.test_in_a_folder import write_arc

PLACES = {
    "your-policy.md": {"strongest.py": "lynx_exp/routing/policies", "strongest.yaml": "conf/policy"},
    "your-task.md": {"arc.yaml": "conf/task"},
    "your-figure.md": {"spread.py": "analysis/figures"},
    "your-model.md": {"swapped.py": "lynx_exp/models/odd_families"},
}
FOLDERS = ("analysis", "benchmarks", "conf", "docs", "examples", "lynx_exp", "sweeps", "tests", ".ci")
ENUMERATING = (
    *("tests/routing/test_golden.py", "tests/routing/test_policies.py", "tests/routing/test_kernels_of_all.py"),
    *("tests/test_conf.py", "tests/test_reference.py", "tests/test_help.py", "tests/test_imports.py"),
    *("tests/vllm/test_settings.py", "tests/test_project_files.py"),
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository, and beside what is in it one of each."""
    root = tmp_path_factory.mktemp("copy") / "lynx_exp"
    for path in ROOT.iterdir():
        if path.is_file():
            root.mkdir(exist_ok=True)
            shutil.copy(path, root / path.name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for page, places in PLACES.items():
        for name, folder in places.items():
            assert f"`{folder}/" in text_of(page), f"{page} says where {name} lies"
            assert not (root / folder / name).exists()
            write(root / folder, name, files_of(page)[name])
    return root


def test_the_tests_that_enumerate_need_not_be_told(copy: Path) -> None:
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    said = run([*pytest_here, *ENUMERATING], copy, {"PYTHONPATH": str(copy)})
    assert " passed" in said


def test_the_laws_find_the_policy(copy: Path) -> None:
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    said = run([*pytest_here, "tests/routing/test_laws.py", "-k", "strongest"], copy, {"PYTHONPATH": str(copy)})
    assert " passed" in said


def test_the_commands_of_the_pages(copy: Path, tmp_path: Path) -> None:
    first, second = commands_of("your-policy.md", "strongest")
    type_command(first, tmp_path, root=copy)
    assert "1 cell: 1 done" in type_command(second, tmp_path, root=copy)
    (table,) = commands_of("your-policy.md", "lynx-results table")
    assert "strongest(count=4)" in type_command(table, tmp_path, root=copy)
    write_arc(tmp_path / "documents")
    _, arc = commands_of("your-task.md", "=arc")
    assert "nothing was run" in type_command(f"{arc.partition('#')[0]} plan=true batch_size=2", tmp_path, root=copy)
    (drawn,) = commands_of("your-figure.md", "--only spread")
    assert "spread.png" in type_command(drawn.replace("results/demo", "results/default"), tmp_path, root=copy)
    (odd,) = commands_of("your-model.md", "trust_remote_code")
    odd = odd.replace("PATH_OR_HUB_ID", str(write_checkpoint(tmp_path / "model"))).replace(
        "policy=lynx", "policy=top_k"
    )
    assert "1 cell: 1 done" in type_command(f"{odd} task=mini_truthfulqa limit=4 batch_size=2", tmp_path, root=copy)
