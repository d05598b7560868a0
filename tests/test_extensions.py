"""A user's own files beside an installed wheel: docs/extending.md, followed to the letter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from lynx_exp import cli, extensions

ROOT = Path(__file__).parents[1]


def write_example(folder: Path) -> Path:
    """The files of docs/extending.md, as it says; the folder `mine`."""
    text = (ROOT / "docs/extending.md").read_text()
    found = re.findall(r"^`(mine/[^`]+)`[^\n]*\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 7
    for name, content in found:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "mine"


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """Extensions are looked for anew, before and after."""
    extensions.extension_folders.cache_clear()
    yield monkeypatch
    extensions.extension_folders.cache_clear()


def test_what_is_no_folder_is_one_line(fresh, tmp_path):
    fresh.setenv("LYNX_EXP_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"^LYNX_EXP_PATH: .*nowhere is no folder$"):
        extensions.extension_folders()
    fresh.setenv("LYNX_EXP_PATH", str(tmp_path))
    with pytest.raises(ValueError, match="has none of the folders policies, tasks"):
        extensions.extension_folders()


@pytest.mark.parametrize("place", ["conf/policy", "sweeps/study"])
def test_a_file_that_is_no_yaml_is_one_line(place, fresh, tmp_path, capsys):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text("a: [1\n b: {")
    fresh.setenv("LYNX_EXP_PATH", str(tmp_path))
    assert cli.run(["policy=bad" if "policy" in place else "+study=bad"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "bad.yaml: is not YAML: line 2, column 3" in err


def test_a_name_that_is_taken_is_refused(fresh, tmp_path):
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/lynx.py").write_text("")
    fresh.setenv("LYNX_EXP_PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is a policies module of that name already"):
        extensions.modules("policies", ROOT / "lynx_exp/routing/policies")


def test_folders_count_once_and_in_order(fresh, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "conf").mkdir(parents=True)
    fresh.setenv("LYNX_EXP_PATH", os.pathsep.join(str(tmp_path / name) for name in ("b", "a", "b")))
    assert [folder.name for folder in extensions.extension_folders()] == ["b", "a"]


def _run(command: list[object], folder: Path, **more: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it; what it depends on is that of this one. Its folder of programs."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "wheel", "--no-deps", "--quiet", "--wheel-dir", folder, ROOT], folder)
    venv.create(folder / "env", with_pip=False)
    programs = folder / "env/bin"
    (wheel,) = folder.glob("lynx_exp-*.whl")
    _run([*pip, "--python", programs / "python", "install", "--no-deps", "--quiet", wheel], folder)
    (own,) = (folder / "env/lib").glob("python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = _run([programs / "python", "-c", "import lynx_exp; print(lynx_exp.__file__)"], folder)
    assert Path(where.strip()).is_relative_to(own)
    assert (own / "lynx_exp/py.typed").is_file() and (own / "analysis/py.typed").is_file()
    return programs


@pytest.mark.slow
def test_one_of_each_beside_an_installed_wheel(installed: Path, tmp_path: Path):
    path = str(write_example(tmp_path))
    (tmp_path / "analysis.py").write_text("raise RuntimeError('the analysis of somebody else')\n")
    said = _run([installed / "lynx-exp", "+study=mine"], tmp_path, LYNX_EXP_PATH=path)
    assert "3 cells: 3 done, 0 skipped, 0 failed" in said and "strongest(count=4)" in said
    again = _run([installed / "python", "-m", "lynx_exp", "+study=mine"], tmp_path, LYNX_EXP_PATH=path)
    assert "3 cells: 0 done, 3 skipped" in again
    more = ["model=small_random", "policy=strongest", "policy.count=4", "study_name=other"]
    _run([installed / "lynx-exp", "task=sums", "batch_size=4", *more], tmp_path, LYNX_EXP_PATH=path)
    drawn = _run(
        [installed / "lynx-results", "figures", "results/mine", "--only", "spread"], tmp_path, LYNX_EXP_PATH=path
    )
    assert "spread.png" in drawn
    shown = _run([installed / "python", "-m", "lynx_exp.results.main", "table", "results/mine"], tmp_path)
    assert "strongest(count=8)" in shown
    refused = subprocess.run(
        [installed / "lynx-exp", "policy=strongest"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2


@pytest.mark.slow
def test_a_changed_policy_is_another_cell(installed: Path, tmp_path: Path):
    mine = write_example(tmp_path)
    command = [installed / "lynx-exp", "+study=mine", "plan=true"]
    before = _run([installed / "lynx-exp", "+study=mine"], tmp_path, LYNX_EXP_PATH=str(mine))
    assert "3 done" in before
    file = mine / "policies/strongest.py"
    file.write_text(file.read_text() + "\n# another version\n")
    after = _run([*command[:2]], tmp_path, LYNX_EXP_PATH=str(mine))
    assert "2 done, 1 skipped" in after


@pytest.mark.slow
def test_a_package_offers_its_folder(installed: Path, tmp_path: Path):
    (own,) = (installed.parent / "lib").glob("python*/site-packages")
    shutil.copytree(write_example(tmp_path), own / "of_a_package")
    (own / "of_a_package/__init__.py").write_text("raise RuntimeError('nobody imports it')\n")
    info = own / "of_a_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: of_a_package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lynx_exp.extensions]\nmine = of_a_package\n")
    try:
        assert "3 done" in _run([installed / "lynx-exp", "+study=mine"], tmp_path)
    finally:
        shutil.rmtree(info)
        shutil.rmtree(own / "of_a_package")
