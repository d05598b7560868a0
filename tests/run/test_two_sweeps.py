"""Two runs on one results folder: each cell is run once, by one of them, and both end with all of them done."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lynx_exp.run.outcomes import Report
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.claims import CLAIM, Claims, read_claim
from lynx_exp.store.read import read_cells
from tests.run.fakes import FakeEngine, FakeTask

LYNX = {"name": "lynx", "alpha": 1.0, "beta": 1, "min_batch": 2}


class Told(StringIO):
    """Sets an event once something with `word` is printed."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word, self.heard = word, threading.Event()

    def write(self, text: str) -> int:
        if self.word in text:
            self.heard.set()
        return super().write(text)


def run(configs: list[Any], engine: FakeEngine, out: StringIO, **more: Any) -> Report:
    def load(name: str, limit: int | None = None, settings: object = None) -> FakeTask:
        return FakeTask(name, "generate", limit or 5)

    console = Console(file=out, width=200)
    return run_cells(
        configs,
        console=console,
        open_engine=lambda _: engine,
        load=load,
        poll_s=0.01,
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture
def two(config):
    """Two packs: cells of one batching each."""
    return [config(), config(LYNX), config(batching="continuous"), config(LYNX, batching="continuous")]


def test_the_second_takes_what_the_first_has_not_and_waits_for_the_rest(two):
    begun, out = threading.Event(), Told("waiting for 2 cells run elsewhere, by process")
    first, second = FakeEngine(), FakeEngine()

    def hold(lanes_run: int) -> None:
        if lanes_run == 2:
            begun.set()
            assert out.heard.wait(60), "the second run has come to wait for the first"

    first.fail = hold  # type: ignore[assignment]
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(run(two, first, StringIO())))
    thread.start()
    assert begun.wait(60)
    reports.append(run(two, second, out))
    thread.join()
    assert all(report.failed == 0 for report in reports)
    assert Counter(first.ran) + Counter(second.ran) == {("run", 0): 4, ("run", 1): 2, ("run", 2): 2}, "each lane once"
    assert first.ran and second.ran
    folder = Path(two[0].results)
    assert [cell.done for cell in read_cells(folder)] == [True] * 4
    assert not list(folder.rglob(CLAIM))
    assert sorted(outcome.state for outcome in reports[0].outcomes) == ["done", "done", "skipped", "skipped"]


def overtaken(folder: Path, thief: Claims) -> None:
    """What another process does that takes this one for dead."""
    found = read_claim(folder)
    assert found is not None
    found.path.rename(folder / f".{CLAIM}.gone.tmp")
    assert thief.take(folder)


@pytest.mark.parametrize("others", [0, 2])
def test_a_cell_that_is_taken_over_is_left_alone(others, config, tmp_path):
    """A process that slept: its claim is gone, another has the cell; it writes nothing more there, goes on with the
    others of its pack, and waits."""
    thief = Claims()
    taken: list[Path] = []

    class Told(StringIO):
        def write(self, text: str) -> int:
            if "another process has taken it over" in text:
                assert (taken[0] / "status.json").read_bytes() == b"theirs"
                (taken[0] / "status.json").unlink()
                thief.give_back(taken[0])  # the other gives it up again
            return super().write(text)

    def steal(lanes_run: int) -> None:
        if lanes_run == 2:
            taken.append(sorted(path.parent for path in tmp_path.rglob(CLAIM))[0])
            overtaken(taken[0], thief)
            (taken[0] / "status.json").write_bytes(b"theirs")

    engine, out = FakeEngine(), Told()
    engine.fail = steal  # type: ignore[assignment]
    cells = [config(), config(LYNX), config(LYNX | {"alpha": 2.0})][: others + 1]
    report = run(cells, engine, out)
    assert report.failed == 0 and out.getvalue().count("another process has taken it over") == 1
    assert "one by one" not in out.getvalue()
    found = {cell.path: cell for cell in read_cells(tmp_path)}
    assert len(found) == others + 1 and all(cell.done for cell in found.values())
    assert {path for path in found if found[path].status["attempts"]} == set()
    again = run(cells, engine, StringIO())
    assert {outcome.state for outcome in again.outcomes} == {"skipped"}


def test_the_second_of_two_that_finds_everything_held_has_nothing_to_begin(config, tmp_path):
    """It ends cells before it has begun a pack of its own."""
    first, out, reports = FakeEngine(), Told("waiting for 1 cell "), []
    begun = threading.Event()

    def hold(lanes_run: int) -> None:
        begun.set()
        assert out.heard.wait(60)

    first.fail = hold  # type: ignore[assignment]
    thread = threading.Thread(target=lambda: reports.append(run([config()], first, StringIO())))
    thread.start()
    assert begun.wait(60)
    second = run([config()], FakeEngine(), out)
    thread.join()
    assert [outcome.state for outcome in (*reports[0].outcomes, *second.outcomes)] == ["done", "skipped"]
    (line,) = [line for line in out.getvalue().splitlines() if line.startswith("1/1 ")]
    assert line.endswith(": skipped"), "no time: nothing ran here"


def test_a_claim_that_cannot_be_made_before_the_first_pack(config, tmp_path, monkeypatch):
    def refuse(self: Claims, folder: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Claims, "take", refuse)
    report = run([config(), config(LYNX)], FakeEngine(), StringIO())
    assert [outcome.state for outcome in report.outcomes] == ["failed"] * 2
    assert all(str(outcome.error).startswith("cannot be claimed: ") for outcome in report.outcomes)


@pytest.mark.slow
def test_two_processes_started_at_once(tmp_path):
    words = [
        "task=mini_gsm8k,mini_wmt16",
        "policy=vanilla,lynx,top_k",
        "batch_size=1,4",
        "limit=12",
        "pack.max_cells=3",
    ]
    call = [sys.executable, "-c", "from lynx_exp.cli import main; main()", "-m", *words, f"results={tmp_path}/results"]
    runs = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=500) for process in runs]
    assert [process.returncode for process in runs] == [0, 0], said
    cells = read_cells(tmp_path / "results")
    assert len(cells) == 12 and all(cell.done for cell in cells)
    assert {cell.status["attempt"] for cell in cells} == {1}, "none was begun twice"
    ended = Counter(line.split(": ")[1] for out, _ in said for line in out.splitlines() if "/12 " in line)
    assert sum(int(out.rpartition("12 cells: ")[2].split()[0]) for out, _ in said) == 12, (ended, said)
    assert not [path for path in tmp_path.rglob("*") if path.name == CLAIM or path.suffix == ".tmp"]
