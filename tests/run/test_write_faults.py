"""Every write fails once, every file is damaged once: a clear end, and the same command gives the same bytes."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.store import files
from lynx_exp.store.claims import CLAIM
from lynx_exp.store.holders import this_process
from lynx_exp.store.read import is_done, read_cells
from tests.run.lab import found

LYNX = {"name": "lynx", "alpha": 1.0, "beta": 1, "min_batch": 2}
EVENTS = ("mkstemp", "fsync", "replace")


@contextmanager
def counted(event: Callable[[int, str], None], patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """`event` is told of every step of every write, by number and name, before it is done."""
    seen: list[str] = []

    def watch(where: Any, name: str) -> None:
        real = getattr(where, name)

        def watched(*args: Any, **more: Any) -> Any:
            seen.append(name)
            event(len(seen) - 1, name)
            return real(*args, **more)

        patch.setattr(where, name, watched)

    with patch.context() as patch:
        watch(tempfile, "mkstemp")
        watch(os, "fsync")
        watch(os, "replace")
        yield seen


@pytest.fixture
def grid(config):
    return [config(), config(LYNX, subtasks=("gen", "choice"))]


@pytest.fixture
def whole(bench, grid, config, tmp_path, monkeypatch):
    """(files of a run in which nothing fails, the steps of its writes)"""
    with counted(lambda *_: None, monkeypatch) as seen:
        assert bench.run(grid).failed == 0
    made = found(tmp_path / "results")
    for path in sorted((tmp_path / "results").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    return made, seen


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.name.endswith(".tmp") or path.name == CLAIM]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_every_step_of_every_write_fails_once(number, bench, grid, whole, tmp_path, monkeypatch):
    made, steps = whole
    assert len(steps) > 60
    results = tmp_path / "results"
    for at in range(0, len(steps), 3):

        def fail(step: int, name: str, at: int = at) -> None:
            if step == at:
                raise OSError(number, os.strerror(number))

        with counted(fail, monkeypatch):
            try:
                report = bench.run(grid)
            except ValueError as refused:  # the very first write: nothing has been run
                assert "results=" in str(refused) and "\n" not in str(refused)
            else:
                failed = [outcome for outcome in report.outcomes if outcome.state == "failed"]
                assert failed and all(outcome.error and "\n" not in outcome.error for outcome in failed), at
                if number == errno.ENOSPC:
                    assert any("full" in (outcome.error or "") for outcome in failed), at
                else:
                    recorded = [cell.status.get("error") or {} for cell in read_cells(results)]
                    told = [error.get("kind") for error in recorded] + ["io"] * (at < 12)
                    kept = any(is_done(outcome.folder) for outcome in failed)  # behind DONE: told, and nothing undone
                    unclaimed = any("cannot be claimed" in (outcome.error or "") for outcome in failed)
                    assert "io" in told or unclaimed or kept, (at, recorded)
                    assert all(cell.status["state"] == "done" for cell in read_cells(results) if cell.done), at
        assert leftovers(results) == [], at
        assert bench.run(grid).failed == 0, at
        assert found(results) == made, at
        for path in sorted(results.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()


def test_a_full_disk_stops_the_sweep_at_once(bench, config, tmp_path, monkeypatch):
    bench.engine.fail = lambda run: OSError(errno.ENOSPC, "No space left on device") if run == 4 else None
    report = bench.run([config(), config(LYNX), config(batch_size=3)], packed=False)
    assert [outcome.state for outcome in report.outcomes] == ["done", "failed", "failed"]
    assert all("the disk is full" in str(outcome.error) for outcome in report.outcomes[1:])
    assert len(bench.engine.ran) == 4, "nothing ran after it"
    bench.engine.fail = lambda run: None
    assert bench.run([config(), config(LYNX), config(batch_size=3)]).failed == 0


DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbage": lambda content: b"\x00\xff garbage \n" * 20,
    "one bit": lambda content: content[:-3] + bytes([content[-3] ^ 4]) + content[-2:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_file_of_an_interrupted_cell_is_damaged(damage, bench, grid, whole, tmp_path):
    made, _ = whole
    results = tmp_path / "results"

    def interrupted() -> list[Path]:
        for path in sorted(results.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        bench.engine.ran.clear()
        bench.engine.fail = lambda run: KeyboardInterrupt() if run == 5 else None
        with pytest.raises(KeyboardInterrupt):
            bench.run(grid)
        bench.engine.fail = lambda run: None
        done = {path.parent for path in results.rglob("DONE")}  # whose files `lynx-results validate` looks after
        found = (path for path in results.rglob("*") if path.is_file() and path.parent not in done)
        return sorted(path.relative_to(results) for path in found)

    for name in interrupted():
        assert name in interrupted()
        path = results / name
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
        assert bench.run(grid).failed == 0, name
        assert found(results) == made, name
        notes = [note for cell in read_cells(results) for note in cell.status["notes"]]
        assert any("set aside, and the lane run again" in note for note in notes) == (path.parent.name == "lanes"), name
    assert leftovers(results) == []


def test_a_kill_right_behind_done_leaves_nothing(bench, grid, whole, tmp_path):
    made, _ = whole
    bench.run(grid)
    results = tmp_path / "results"
    for done in results.rglob("DONE"):
        files.write_json(done.with_name(CLAIM), vars(this_process()) | {"born": "1"})
        done.with_name(".steps.parquet.x.tmp").touch()
        (done.parent / "lanes").mkdir()
        (done.parent / "lanes" / "gen-00000.json").touch()
    assert {outcome.state for outcome in bench.run(grid).outcomes} == {"skipped"}
    assert found(results) == made and leftovers(results) == [] and not list(results.rglob("lanes"))


@pytest.mark.parametrize("name", ["DONE", "metrics.json", "responses.parquet"])
def test_a_finished_cell_that_lost_a_file_is_run_again(name, bench, grid, whole, tmp_path):
    made, _ = whole
    results = tmp_path / "results"
    bench.run(grid)
    victim = next(results.rglob(name))
    victim.unlink()
    report = bench.run(grid)
    assert sorted(outcome.state for outcome in report.outcomes) == ["done", "skipped"]
    assert found(results) == made


def test_a_lost_attempt_is_counted_and_forgiven_when_it_got_further(bench, config, tmp_path):
    """A process that was killed leaves a cell that counts as running."""
    one = config(subtasks=("gen", "choice"), max_failures=2)
    folder = None

    def lose(*, further: bool) -> dict[str, Any]:
        """What the status says once the next attempt has begun and been stopped, after an attempt that was lost."""
        ran = len(bench.engine.ran)
        bench.engine.fail = lambda run: KeyboardInterrupt() if run == ran + further else None
        with pytest.raises(KeyboardInterrupt):
            bench.run([one])
        path = next((tmp_path / "results").rglob("status.json"))
        status = json.loads(path.read_text())
        files.write_json(path, status | {"state": "running", "lanes": status["lanes"] - further})
        files.write_json(path.with_name(CLAIM), vars(this_process()) | {"born": "1"})
        return status

    assert [lose(further=True)["failures"], lose(further=True)["failures"], lose(further=False)["failures"]] == [
        0,
        0,
        0,
    ]
    assert lose(further=False)["failures"] == 1
    assert lose(further=False)["failures"] == 2
    bench.engine.fail = lambda run: None
    report = bench.run([one])
    folder = report.outcomes[0].folder
    assert "not run: failed 2 times in a row" in str(report.outcomes[0].error) or report.failed == 0
    again = config(subtasks=("gen", "choice"), max_failures=None)
    assert bench.run([again]).outcomes == [type(report.outcomes[0])(state="done", folder=folder)]
    attempts = json.loads((folder / "status.json").read_text())["attempts"]
    assert {"lost"} <= {attempt["state"] for attempt in attempts}


def test_a_kill_is_no_failure_of_cells_that_waited_their_turn(bench, config, tmp_path):
    """Of a pack one cell got a lane further; the others' lanes had not begun."""
    pack = [config(), config(LYNX)]

    def kill(*, after: int) -> list[int]:
        """The failures of each cell as its attempt began, which ends with so many lanes run and without a word."""
        ran = len(bench.engine.ran)
        bench.engine.fail = lambda run: KeyboardInterrupt() if run == ran + after else None
        with pytest.raises(KeyboardInterrupt):
            bench.run(pack)
        told = []
        for path in sorted((tmp_path / "results").rglob("status.json")):
            status = json.loads(path.read_text())
            told.append(status["failures"])
            files.write_json(path, status | {"state": "running", "lanes": max(0, status["lanes"] - after)})
            files.write_json(path.with_name(CLAIM), vars(this_process()) | {"born": "1"})
        return told

    assert kill(after=1) == [0, 0]
    lanes = [len(list(path.glob("*.json"))) for path in sorted((tmp_path / "results").rglob("lanes"))]
    assert sorted(lanes) == [0, 1], "one of the two has a lane"
    assert kill(after=0) == [0, 0], "neither was at fault"
    assert kill(after=0) == [1, 1], "nothing came of that attempt"
