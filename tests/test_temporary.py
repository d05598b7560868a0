"""A temporary folder that is absent, full or read-only: each command says so in one line, before it begins."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lynx_exp import cli
from lynx_exp.prepare import command_line as prepare
from lynx_exp.tasks.run_programs import ExecutionError, SandboxUnavailable
from lynx_exp.tasks.sandbox import sandbox as tries
from lynx_exp.tasks.sandbox import start_supervisor, tiers
from lynx_exp.temporary import check_temporary_folder
from tests.verbs.study import results, run_study


@pytest.fixture(params=["absent", "a file", "full"])
def named(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """(what TMPDIR is, why it will not do)"""
    place = tmp_path / "scratch"
    why = "No such file or directory"
    if request.param == "a file":
        place.write_text("")
        why = "Not a directory"
    elif request.param == "full":
        why = "No space left on device"

        def full(*_: Any, **__: Any) -> Any:
            raise OSError(errno.ENOSPC, why)

        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setenv("TMPDIR", str(place))
    return str(place), why


def commands(folder: Path) -> dict[str, list[str]]:
    out = f"{folder}/out"
    return {
        "lynx-exp": ["task=mini_humaneval", "limit=2", f"results={out}"],
        "lynx-exp, drawn": ["task=mini_gsm8k", "task.generation.temperature=1.0", "limit=2", f"results={out}"],
        "lynx-prepare": ["calibrate", "sequences=2", f"out={out}"],
        "lynx-results": ["report", str(folder), "--out", out],
        "lynx-results figures": ["figures", str(folder), "--out", out],
        "lynx-results export": ["export", "--format", "lm-eval", str(folder), "--out", out],
    }


@pytest.mark.parametrize("which", commands(Path()))
def test_a_folder_that_is_named_and_will_not_do(
    which: str, named: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = which.split()[0].rstrip(",")
    run = {"lynx-exp": cli.run, "lynx-prepare": prepare.run, "lynx-results": lambda words: results(*words)}[command]
    assert run(commands(tmp_path)[which]) == 2
    out, err = capsys.readouterr()
    place, why = named
    told = f"TMPDIR={place}: no file can be written there ({why}); name another folder, or unset it"
    assert (out, err) == ("", f"{command}: error: {told}\n")
    assert not (tmp_path / "out").exists()


def test_no_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere/a", "/nowhere/b"])
    with pytest.raises(ValueError, match=r"^TMPDIR: none of \['/nowhere/a', '/nowhere/b'\] can be written to; name"):
        check_temporary_folder()


def test_a_folder_that_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    check_temporary_folder()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_full_by_the_time_programs_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line that names it: the cell fails with it, and its responses are kept."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    why = r"/gone: no folder for programs can be made there \(No such file"
    with pytest.raises(ExecutionError, match=why), start_supervisor.work_folder():
        raise AssertionError("never reached")
    with pytest.raises(SandboxUnavailable, match=r"^sandbox: cannot be tried: .*/gone/canary-\w+: No such file"):
        tries.tried.__wrapped__((tiers.UNSAFE,))


BAD = """
mount -t tmpfs -o size=16k none /tmp
mount --bind /tmp /var/tmp
case {how} in
full) head -c 1000000 /dev/zero > /tmp/filler 2> /dev/null;;
readonly) mount -o remount,ro,bind /tmp; mount -o remount,ro,bind /var/tmp;;
esac
cd {at}
exec "$@"
"""
"""In a mount namespace of its own: every temporary folder is tiny, and full or read-only."""


def in_bad_folders(how: str, at: str, folder: Path, *words: str) -> tuple[int, str]:
    script = BAD.format(how=how, at=at)
    caches = {"XDG_CACHE_HOME": f"{folder}/cache", "MPLCONFIGDIR": f"{folder}/cache"}
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"} | caches
    code = f"import sys; sys.argv[0] = {words[0]!r}; from {MAINS[words[0]]} import main; main()"
    call = ["unshare", "--mount", "bash", "-c", script, "bash", sys.executable, "-c", code, *words[1:]]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr


MAINS = {
    "lynx-exp": "lynx_exp.cli",
    "lynx-results": "lynx_exp.results.main",
    "lynx-prepare": "lynx_exp.prepare.command_line",
}


@pytest.fixture(scope="module")
def outside() -> Any:
    """A folder that is not below /tmp, with a study in it."""
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("only root may mount")
    folder = Path(tempfile.mkdtemp(dir=Path(__file__).parents[1], prefix="bad-folders-", suffix=".tmp"))
    run_study(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["full", "readonly"])
@pytest.mark.parametrize("which", commands(Path()))
def test_no_real_folder(how: str, which: str, outside: Path) -> None:
    """The working directory, to which Python would turn last, is one of them."""
    command = which.split()[0].rstrip(",")
    words = [
        word.replace(f"results={outside}/default/out", f"results={outside}/out")
        for word in commands(outside / "default")[which]
    ]
    code, said = in_bad_folders(how, "/tmp", outside, command, *words)
    assert code == 2 and said.splitlines()[-1].startswith(f"{command}: error: TMPDIR: none of ['/tmp', "), said
    assert said.count("\n") == 1 and not (outside / "out").exists() and not (outside / "default" / "out").exists()


@pytest.mark.slow
def test_a_real_folder_fills_up(outside: Path) -> None:
    """What fits into a folder is no matter of opinion: a report's pictures do not, and nothing else is drawn there."""
    study, page = outside / "default", outside / "page.html"
    code, said = in_bad_folders("small", "/", outside, "lynx-results", "report", str(study), "--out", str(page))
    last = said.splitlines()[-1]
    assert code == 2 and last.startswith("lynx-results: error: /tmp/") and last.endswith(": No space left on device")
    assert "Traceback" not in said and not page.exists()
    drawn = ("lynx-results", "figures", str(study), "--only", "pareto", "--out", f"{outside}/drawn")
    code, said = in_bad_folders("small", "/", outside, *drawn)
    assert code == 0 and list((outside / "drawn").glob("*.pdf")), said
