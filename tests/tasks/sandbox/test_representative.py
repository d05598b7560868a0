"""A few programs of each kind, in every tier, as root and as a plain user: what the fast suite knows of all of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from lynx_exp.tasks import Program
from lynx_exp.tasks.sandbox import readable_files as files
from tests.tasks.sandbox.conftest import PATIENT_S
from tests.tasks.sandbox.test_denial import BREAK, GOOD
from tests.tasks.sandbox.test_denial import HEAD as BREAK_HEAD
from tests.tasks.sandbox.test_escapes import ESCAPES, sources, there
from tests.tasks.sandbox.test_forgeries import FORGERIES, TESTS
from tests.tasks.sandbox.test_values import NOT_JUDGED, SAME

__all__ = ["there"]

SOME_ESCAPES = ("os.system", "signal the parent", "tcp", "read the canary", "mode by a descriptor", "unix path")
SOME_FORGERIES = ("always equal", "os._exit", "objects", "every descriptor", "a reply in advance")
SOME_VALUES = ("numpy scalars inside", "dict views", "dataclass", "own exceptions", "operators", "a builtin's name")
UNKNOWN = "arithmetic with the test's"


def program(source: str, test: str) -> Program:
    return Program(source=source, test=test, entry_point=None)


@pytest.fixture
def readable_folder():
    """Not pytest's own: only its user may enter that."""
    with tempfile.TemporaryDirectory(prefix="readable-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_modes_of_the_users_own_readable_file(each_tier, readable_folder, monkeypatch):
    """fchmod asks for no right to write: what may be read could be made executable for all, with its owner's rights."""
    if each_tier.tier != "landlock":
        pytest.skip("the file is not even there")
    own = readable_folder / "own"
    own.write_text("x")
    own.chmod(0o644)
    granted, listed = files.carved()
    monkeypatch.setattr(files, "carved", lambda: ([*granted, str(readable_folder)], listed))
    line = f"os.fchmod(os.open({str(own)!r}, os.O_RDONLY), 0o4777)"
    source = f"import os\ndef read(): return open({str(own)!r}).read()\ndef change(): {line}"
    reads, changes = each_tier.run(
        [program(source, "assert read() == 'x'"), program(source, "change()")], timeout_s=PATIENT_S
    )
    assert (reads.reason, changes.reason) == ("passed", "raised PermissionError")
    assert own.stat().st_mode & 0o7777 == 0o644


def test_a_broken_folder_costs_its_own_verdict(each_tier, leftovers):
    programs = []
    for name in ("mode of the folder", "names of the cleaner"):
        programs += [program(BREAK_HEAD + BREAK[name], ""), program(GOOD, "assert f() == 1")]
    verdicts = each_tier.run(programs, timeout_s=PATIENT_S, workers=1)
    assert [it.reason for it in verdicts[1::2]] == ["passed", "passed"]
    assert leftovers() == []


def test_escapes(each_tier, there, leftovers):  # noqa: F811 (a fixture)
    chosen = {name: ESCAPES[name] for name in SOME_ESCAPES}
    verdicts = each_tier.run([program(it, "assert f() == 1") for it in sources(chosen, there)], timeout_s=PATIENT_S)
    assert [name for name, it in zip(chosen, verdicts, strict=True) if it.passed] == []
    assert there.reached() == {}
    assert leftovers() == []


def test_forgeries_and_values(each_tier):
    forged = [program(FORGERIES[name], TESTS["equality"]) for name in SOME_FORGERIES]
    right = [program(*SAME[name]) for name in SOME_VALUES]
    verdicts = each_tier.run([*forged, *right, program(*NOT_JUDGED[UNKNOWN])], timeout_s=PATIENT_S)
    assert [it.passed for it in verdicts] == [False] * len(forged) + [True] * len(right) + [False]
    assert verdicts[-1].transport
