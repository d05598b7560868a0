"""`lynx-results gc`: finds what nobody needs, says why, and never touches a result or a cell at work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_exp.store import leftovers as module
from lynx_exp.store.claims import CLAIM, Claims, is_held
from lynx_exp.store.files import read_json, write_json
from lynx_exp.store.hold import Hold
from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.leftovers import KINDS, find_leftovers
from lynx_exp.store.read import is_done, read_cells
from lynx_exp.store.survey import STATES
from tests.verbs.corruptions import claimed
from tests.verbs.study import cell_of, results
from tests.verbs.sweep import Sweep

DEAD = 2**22 + 1
"""No process has this number."""


def old(path: Path, content: str = "x") -> Path:
    """A file that was written an hour ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    return path


def finished(folder: Path, day: int) -> Path:
    write_json(
        folder / "status.json", read_json(folder / "status.json") | {"finished": f"2026-01-{day:02d}T00:00:00+00:00"}
    )
    return folder


def content(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def found(sweep: Sweep) -> dict[str, str]:
    """Kind of each item, by its path below the study."""
    return {str(item.path.relative_to(sweep.study)): item.kind for item in find_leftovers(sweep.study)}


@pytest.fixture
def littered(sweep: Sweep) -> dict[str, str]:
    """One thing of each kind, between cells that are as they should be: what is to be found."""
    for number, state in enumerate(STATES):
        sweep.cell(f"good{number}", state, lanes=4 if state == "done" else 1)
    (sweep.study / "good6" / "error.txt").unlink()  # of the failed one
    old(sweep.study / "good3" / ".plan.json.x7.tmp")
    old(sweep.study / "good3" / "lanes" / ".task-00002.json.x8.tmp")
    old(sweep.study / "good3" / "lanes" / "task-00001.corrupt", "damaged")
    old(sweep.study / "sweeps" / ".a.json.x9.tmp")
    old(sweep.study / ".gone.tmp" / "plan.json")
    os.utime(sweep.study / ".gone.tmp", (1, 1))
    shutil.copytree(sweep.study / "good4" / "lanes", sweep.study / "good0" / "lanes")
    claimed(sweep.study / "good4", DEAD)
    sweep.cell("older", "interrupted", lanes=2, code="before")
    sweep.cell("oldest", "running", lanes=2, code="before", schema=SCHEMA - 1)
    sweep.claims.give_back(sweep.study / "oldest")
    finished(sweep.cell("result", "done", lanes=4, asks="b"), 9)
    finished(sweep.cell("result_before", "done", lanes=4, asks="b", code="before"), 8)
    sweep.cell("failed", "failed", lanes=1)
    return {
        "good3/.plan.json.x7.tmp": "killed",
        "good3/lanes/.task-00002.json.x8.tmp": "killed",
        "good3/lanes/task-00001.corrupt": "damaged",
        "sweeps/.a.json.x9.tmp": "killed",
        ".gone.tmp": "killed",
        "good0/lanes": "journal",
        "good4/CLAIM": "claim",
        "older": "outdated",
        "oldest": "outdated",
        "result_before": "superseded",
        "failed/error.txt": "trace",
    }


def test_each_kind_is_found_and_nothing_else(sweep: Sweep, littered: dict[str, str]) -> None:
    assert found(sweep) == littered
    assert set(littered.values()) == set(KINDS)


def test_nothing_is_deleted_unless_it_is_said(
    sweep: Sweep, littered: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(sweep.study)
    assert results("gc", sweep.study) == 0
    lines = capsys.readouterr().out.splitlines()
    by_default = [name for name, kind in littered.items() if kind not in ("superseded", "trace")]
    assert len(lines) == len(by_default) + 3
    for name in by_default:
        (line,) = (line for line in lines if f"  {sweep.study / name}: " in line)
        assert line.endswith(f": {KINDS[littered[name]]}")  # type: ignore[index]
    assert lines[0].split()[1] in ("B", "KiB")
    assert lines[-3].startswith("9 items, ") and lines[-3].endswith("; nothing is deleted without --delete")
    assert lines[-2].startswith("with --superseded 1 item more, ") and lines[-1].startswith(
        "with --all 1 item more, 5 B"
    )
    assert results("gc", sweep.study, "--all", "--superseded") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("11 items, ")
    assert content(sweep.study) == before


def test_what_is_listed_is_deleted_and_nothing_else(
    sweep: Sweep, littered: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(sweep.study)
    assert results("gc", sweep.study, "--delete", "--superseded", "--all") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("deleted 11 of 11 items, ")
    gone = [sweep.study / name for name in littered]
    kept = {path: data for path, data in before.items() if not any(path.is_relative_to(item) for item in gone)}
    assert content(sweep.study) == kept
    assert results("gc", sweep.study, "--superseded", "--all") == 0
    assert capsys.readouterr().out == "nothing to delete\n"


def test_a_cell_at_work_is_left_alone(sweep: Sweep) -> None:
    folder = sweep.cell("a", "running", lanes=2, code="before")
    old(folder / ".plan.json.x.tmp")
    old(folder / "lanes" / "task-00003.corrupt")
    (folder / "error.txt").write_text("trace")
    assert found(sweep) == {}
    sweep.claims.give_back(folder)
    assert found(sweep) == {"a": "outdated"}


def test_a_cell_that_is_taken_meanwhile_is_left_alone(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outdated, finished_now = (
        sweep.cell("a", "interrupted", code="before"),
        sweep.cell("b", "interrupted", code="before"),
    )
    plain = module.find_leftovers

    def find(root: Path) -> Any:
        items = plain(root)
        assert sweep.claims.take(outdated)
        sweep.cell("b", "done", lanes=4, code="before")
        return items

    monkeypatch.setattr(module, "find_leftovers", find)
    before = content(outdated)
    assert results("gc", sweep.study, "--delete") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("deleted 0 of 2 items") and err.count("left alone") == 2
    assert content(outdated) == before | content(outdated) and is_done(finished_now)
    assert not (finished_now / CLAIM).exists()


def test_a_file_that_may_still_be_written_is_kept(sweep: Sweep) -> None:
    folder = sweep.cell("a", "interrupted", lanes=1)
    (folder / ".plan.json.x.tmp").write_text("x")
    assert found(sweep) == {}


def test_what_a_sweep_of_this_code_or_the_latest_asked_for_is_kept(sweep: Sweep) -> None:
    sweep.cell("a", "interrupted", code="before")
    assert found(sweep) == {"a": "outdated"}
    sweep.asks_for("a")
    assert found(sweep) == {}, "of this code, whatever the cell says"
    (file,) = (sweep.study / "sweeps").glob("*.json")
    write_json(file, read_json(file) | {"code": "before"})
    assert found(sweep) == {}, "of other code, but nothing has run since"
    sweep.asks_for("b")
    write_json(file, read_json(file) | {"started": "2025-01-01T00:00:00+00:00"})
    assert found(sweep) == {"a": "outdated"}


def test_a_newer_version_is_none_of_our_business(sweep: Sweep) -> None:
    sweep.cell("a", "interrupted", code="after", schema=SCHEMA + 1)
    finished(sweep.cell("b", "done", lanes=4), 9)
    finished(sweep.cell("c", "done", lanes=4, code="after", schema=SCHEMA + 1), 8)
    assert found(sweep) == {}


@pytest.mark.parametrize("other", ["config", "weights", "documents", "older", "unfinished", "damaged", "study"])
def test_the_only_answer_to_a_question_is_kept(other: str, sweep: Sweep, tmp_path: Path) -> None:
    before = finished(sweep.cell("before", "done", lanes=4, code="before"), 5)
    now = finished(
        sweep.cell("now", "done", lanes=4, asks="b" if other == "config" else "a"), 4 if other == "older" else 6
    )
    provenance = read_json(now / "provenance.json")
    if other == "weights":
        write_json(now / "provenance.json", provenance | {"model": {"digest": "others"}})
    elif other == "documents":
        write_json(now / "provenance.json", provenance | {"data_sha256": {"task": "others"}})
    elif other == "unfinished":
        (now / "DONE").unlink()
    elif other == "damaged":
        (now / "steps.parquet").unlink()
    elif other == "study":
        now.rename((tmp_path / "another").with_name("now"))
    assert "superseded" not in found(sweep).values() and before.is_dir()


def test_a_result_with_a_lost_file_is_still_one(sweep: Sweep) -> None:
    folder = sweep.cell("a", "done", lanes=4, code="before")
    (folder / "steps.parquet").unlink()
    assert found(sweep) == {}


def test_what_goes_with_its_cell_is_counted_once(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    finished(sweep.cell("now", "done", lanes=4), 9)
    before = finished(sweep.cell("before", "done", lanes=4, code="before"), 8)
    old(before / ".x.tmp")
    assert found(sweep) == {"before": "superseded", "before/.x.tmp": "killed"}
    assert results("gc", sweep.study, "--superseded", "--delete") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("deleted 1 of 1 item, ")


def test_two_at_once(sweep: Sweep, littered: dict[str, str]) -> None:
    items = find_leftovers(sweep.study)
    for _ in range(2):
        assert all(module.delete(item, sweep.claims) for item in items if item.kind != "superseded")


def test_what_cannot_be_deleted_is_said_and_stops_nothing(
    sweep: Sweep, littered: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Hold.remove

    def remove(hold: Hold, path: Path) -> None:
        if path.name == "lanes":
            raise PermissionError(13, "Permission denied")
        plain(hold, path)

    monkeypatch.setattr(Hold, "remove", remove)
    assert results("gc", sweep.study, "--delete") == 1
    out, err = capsys.readouterr()
    assert err == f"lynx-results: error: {sweep.study}/good0/lanes: cannot be deleted: Permission denied\n"
    assert out.splitlines()[-3].startswith("deleted 8 of 9 items")


def test_killed_while_it_deletes_a_cell(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    sweep.cell("a", "interrupted", lanes=2, code="before")
    sweep.cell("b", "done", lanes=4)
    with monkeypatch.context() as patch:

        def stop(_path: Path) -> None:
            raise KeyboardInterrupt

        patch.setattr(module, "_remove", stop)
        assert results("gc", sweep.study, "--delete") == 130
    assert [cell.path.name for cell in read_cells(sweep.study)] == ["b"], "half a cell is no cell"
    assert found(sweep) == {}, "it may be just being deleted"
    os.utime(sweep.study / ".a.tmp", (1, 1))
    assert found(sweep) == {".a.tmp": "killed"}
    capsys.readouterr()
    assert results("gc", sweep.study, "--delete") == 0
    assert [path.name for path in sweep.study.iterdir()] == ["b"]


cells = st.lists(
    st.tuples(st.sampled_from(STATES), st.sampled_from([None, "before"]), st.sampled_from("ab"), st.booleans()),
    min_size=1, max_size=6,
)  # fmt: skip


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=cells, superseded=st.booleans())
def test_no_question_loses_its_answer(cells: list[Any], superseded: bool, tmp_path_factory: Any) -> None:
    """Whatever there is: what is at work stays as it is, and each question that had an answer has one."""
    claims = Claims()
    sweep = Sweep(tmp_path_factory.mktemp("any"), claims)
    for number, (state, code, asks, dirty) in enumerate(cells):
        folder = sweep.cell(str(number), state, 4 if state == "done" else 1, code=code, asks=asks)
        if dirty and state != "waiting":
            old(folder / ".x.tmp")
        if state == "done":
            finished(folder, 1 + number)
    sweep.asks_for("0")
    at_work = [sweep.study / str(number) for number, cell in enumerate(cells) if cell[0] == "running"]
    before = {folder: content(folder).keys() for folder in at_work}
    assert all(is_held(folder) for folder in at_work)
    answered = {asks for state, _, asks, _ in cells if state == "done"}
    assert results("gc", sweep.study, "--delete", *(["--superseded"] if superseded else [])) == 0
    after = {folder: content(folder).keys() for folder in at_work}
    claims.close()
    left = [cell for number, cell in enumerate(cells) if is_done(sweep.study / str(number))]
    assert {asks for _, _, asks, _ in left} == answered
    assert superseded or len(left) == sum(state == "done" for state, *_ in cells)
    assert after == before
    assert not [kind for kind in found(sweep).values() if kind == "killed"] or at_work


def test_a_real_study_is_clean_afterwards(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results("gc", study) == 0 and capsys.readouterr().out == "nothing to delete\n"
    cell = cell_of(study)
    old(cell / ".metrics.json.x.tmp")
    old(cell / "lanes" / "a-00000.json")
    old(study / "sweeps" / ".x.json.y.tmp")
    claimed(cell, DEAD)
    assert results("validate", "--strict", study) == 1
    assert results("gc", "--delete", study) == 0
    assert results("validate", "--strict", study) == 0


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert results("gc", folder) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("lynx-results: error: ")
