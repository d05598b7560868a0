"""A virtual environment in a folder that its user alone may enter: root's programs become somebody who cannot walk
there, and their verdicts are those that they have in an open folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path

import pytest

from tests.tasks.sandbox.conftest import PATIENT_S

ROOT = Path(__file__).parents[3]
LIBRARIES = ("numpy", "numpy.libs")
CODE = f"""
import json, sys
from lynx_exp.tasks.sandbox import ExecutionError, Program
from lynx_exp.tasks.sandbox.start_supervisor import run
from lynx_exp.tasks.sandbox.tiers import CONFINING, UNSAFE
programs = [Program(source=source, test="assert f() == 1", entry_point=None) for source in json.loads(sys.argv[1])]
for tier in (*CONFINING, UNSAFE):
    try:
        verdicts = run(tier, programs, timeout_s={PATIENT_S}, memory_mib=1024, workers=2)
    except ExecutionError as error:
        print(tier.name, error, sep=": ")
    else:
        print(tier.name, ", ".join(it.reason for it in verdicts), sep=": ")
"""
PROGRAMS = """[
    "import numpy as np\\ndef f(): return int(np.unique([1, 1]).sum())",
    "def f():\\n np = __import__('num' + 'py'); return int(np.polynomial.polynomial.polyder([0, 1])[0])",
    "import tarfile, unittest.mock\\ndef f(): return len('a'.encode('cp437'))",
    "import numpy\\ndef f(): return 2"
]"""
"""NumPy imports parts of itself only as they are asked for; the third needs what the standard library imports late."""
REASONS = "passed, passed, passed, raised AssertionError"
NONE_HERE = "the process that runs programs ended", "bwrap is not on the PATH"


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


@pytest.fixture(scope="module")
def environment():
    """A virtual environment with NumPy in a folder of mode 0700."""
    numpy = importlib.util.find_spec("numpy")
    assert numpy is not None and numpy.origin is not None
    there = Path(numpy.origin).parents[1]
    with tempfile.TemporaryDirectory(prefix="private-") as folder:  # mkdtemp's mode is 0700
        venv.create(folder + "/venv", symlinks=True)
        [site] = Path(folder).glob("venv/lib/python*/site-packages")
        for name in LIBRARIES:
            if (there / name).exists():
                shutil.copytree(there / name, site / name, copy_function=link)
        yield Path(folder, "venv"), site


def outcomes(environment: Path) -> dict[str, str]:
    """Tier -> reasons of the programs, or why it cannot be had."""
    words = [environment / "bin" / "python", "-B", "-c", CODE, PROGRAMS]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def verdicts(environment) -> dict[str, str]:
    return outcomes(environment[0])


def test_verdicts_are_those_of_an_open_folder(verdicts):
    assert verdicts["unsafe"] == REASONS
    there = {tier: found for tier, found in verdicts.items() if not found.startswith(NONE_HERE)}
    assert set(there.values()) == {REASONS}
    assert not any("may not read" in found for found in verdicts.values())


@pytest.mark.skipif(os.geteuid() != 0, reason="a user's programs are the user's")
def test_a_library_that_only_root_may_read_is_named(environment, verdicts):
    """It would cost each program that imports it its verdict, whatever the model wrote."""
    path, site = environment
    (site / "numpy").chmod(0o700)
    why = outcomes(path)
    (site / "numpy").chmod(0o755)
    expected = f"{site}/numpy: programs of root run as another user, who may not read this: "
    there = [tier for tier, found in verdicts.items() if found == REASONS]
    assert [tier for tier in there if expected not in why[tier]] == []
