"""Every file of a study x every kind of damage x every verb: one line that names file and reason, the rest shown, no
stack trace and no hang."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from psutil import Process

from lynx_exp.store.done import seal
from lynx_exp.store.files import read_json, write_json
from lynx_exp.store.reading import Damaged, read_rows, read_value
from tests.quick_figures import pictures_drawn_once
from tests.verbs import damages
from tests.verbs.study import cell_of, results

JSON_FILES = ("cell.json", "metrics.json", "status.json", "provenance.json", "plan.json", "timing.json", "DONE")
TABLES = ("responses.parquet", "steps.parquet", "samples.parquet", "timing.parquet", "fidelity.parquet")
FILES = (*JSON_FILES, "config.yaml", *TABLES)
CASES = [(name, kind) for name in FILES for kind in damages.of(name) if (name, kind) != ("DONE", "gone")]

VERBS = {
    "table": ("table",),
    "recommend": ("recommend",),
    "pareto": ("pareto",),
    "figure": ("figures", "--only", "fig3"),
    "status": ("status", "--json"),
    "validate": ("validate",),
    "gc": ("gc",),
    "rescore": ("rescore",),
    "export": ("export", "--format", "lm-eval"),
    "report": ("report", "--no-prompts"),
}
QUICK = ("status", "gc", "validate")
"""Verbs that share the cases in the fast suite; the others see one of each kind there. All see all in the slow one."""


def damage(study: Path, name: str, kind: str, *, sealed: bool = False) -> Path:
    folder = cell_of(study)
    damages.of(name)[kind](folder / name)
    if sealed and (folder / name).is_file() and name != "DONE":
        write_json(folder / "DONE", seal(folder, read_json(folder / "DONE")["files"]))
    return folder


@pytest.fixture(scope="module", autouse=True)
def drawn() -> Iterator[None]:
    """What is left of a damaged study is the same for most damages, and to draw it is most of what a report costs."""
    with pictures_drawn_once():
        yield


@pytest.fixture
def small(ran: Path, tmp_path: Path) -> Path:
    """The pair of cells that has every kind of file, and what asked for it."""
    study = tmp_path / "default"
    for policy in ("vanilla", "lynx"):
        folder = cell_of(ran, "both", policy)
        shutil.copytree(folder, study / folder.name)
    return study


HARMLESS = {
    *((name, "an object") for name in ("provenance.json", "timing.json", "plan.json")),
    ("timing.json", "a list of lists"),
    ("config.yaml", "cut"),
}
"""What lacks nothing that a reader must have; only DONE's hash tells."""


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case not in HARMLESS])
def test_each_damage_is_one_line(name: str, kind: str, small: Path) -> None:
    """By the reader itself, whatever DONE says."""
    path = damage(small, name, kind) / name
    with pytest.raises(Damaged) as error:
        read_rows(path) if name in TABLES else read_value(path)
    said = str(error.value)
    assert said.startswith(f"{name}: ") and "\n" not in said and len(said) < 200


@pytest.mark.parametrize("kind", ["a folder", "a pipe"])
def test_what_is_no_file_is_not_left_open(kind: str, small: Path) -> None:
    """A sweep is looked at for days, and a process has few descriptors."""
    path = damage(small, "status.json", kind) / "status.json"
    before = Process().num_fds()
    for _ in range(3):
        assert read_json(path) is None
        with pytest.raises(Damaged):
            read_value(path)
    assert Process().num_fds() == before


@pytest.mark.parametrize(("name", "kind", "verb"), [(*case, QUICK[at % 3]) for at, case in enumerate(CASES)])
def test_quick_verbs(name: str, kind: str, verb: str, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(small, name, kind, sealed=kind not in ("cut", "empty"))
    check(verb, name, small, capsys)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in QUICK])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("cell.json", "gone"), ("metrics.json", "cut"), ("provenance.json", "wrong types"), ("samples.parquet", "cut")],
)
def test_other_verbs(name: str, kind: str, verb: str, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(small, name, kind, sealed=kind == "wrong types")
    check(verb, name, small, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("sealed", [False, True])
def test_all_verbs(
    name: str, kind: str, verb: str, sealed: bool, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(small, name, kind, sealed=sealed)
    check(verb, name, small, capsys, unread=sealed and name in UNREAD.get(verb, ()))


UNREAD = {"rescore": ("steps.parquet",), "export": ("steps.parquet", "samples.parquet")}
"""What a verb has no need to open: only DONE's hash tells, and `sealed` makes it agree."""


def check(verb: str, name: str, study: Path, capsys: pytest.CaptureFixture[str], *, unread: bool = False) -> None:
    code = results(VERBS[verb][0], study, *VERBS[verb][1:])
    out, err = capsys.readouterr()
    assert code in (0, 1) and "Traceback" not in out + err, (code, out, err)
    if verb in ("table", "recommend", "figure", "pareto", "report", "rescore", "export"):
        shown = " ".join((out + err).split())
        assert code == 0 or f"{name}: " in shown, "who fails says which file"
        if name in ("cell.json", "metrics.json", "DONE", *TABLES[:3]) and not unread:
            assert code == 1, "a cell that is lost is no success"
        assert verb != "table" or "vanilla" in out


def test_a_signal_for_the_tests_is_no_verdict_on_a_file(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came once while a report was made, which ended with 75; the tests went on and called that a failure."""

    def terminated(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("analysis.study.study", terminated)
    with pytest.raises(KeyboardInterrupt):
        results("report", small, "--no-prompts")


@pytest.fixture
def closed(small: Path) -> Iterator[Path]:
    """A file where a folder is to be."""
    (small / "file").write_text("")
    yield small / "file"


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        (("table",), "--csv"),
        (("recommend",), "--csv"),
        (("pareto",), "--out"),
        (("report", "--no-prompts"), "--out"),
        (("export", "--format", "lm-eval"), "--out"),
    ],
)
@pytest.mark.parametrize("where", ["file/below", "n" * 300])
def test_places_that_cannot_be_written_to(
    verb: tuple[str, ...], option: str, where: str, closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = results(verb[0], closed.parent, *verb[1:], option, closed.parent / where)
    err = capsys.readouterr().err
    assert code in (1, 2) and "Traceback" not in err
    assert all(line.startswith("lynx-results: ") for line in err.splitlines()) and err
