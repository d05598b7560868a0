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

from lynx_exp.launch.outcomes import Report
from lynx_exp.launch.run import run_cells
from lynx_exp.store.claims import CLAIM, Claims
from lynx_exp.store.read import read_cells
from tests.launch.fakes import FakeEngine, FakeTask

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
    begun, out = threading.Event(), Told("waiting for 2 cells that are run elsewhere, by process")
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


def test_a_cell_that_is_taken_over_is_left_alone(config, tmp_path):
    """A process that slept: its claim is gone, another has the cell; it writes nothing more, and waits."""
    engine, thief, out = FakeEngine(), Claims(), StringIO()
    claims = Claims()
    folders: list[Path] = []

    def steal(lanes_run: int) -> None:
        if lanes_run == 2:
            (folder,) = (path.parent for path in tmp_path.rglob(CLAIM))
            (folder / CLAIM).unlink()
            assert thief.take(folder)
            folders.append(folder)

    def is_mine(folder: Path) -> bool:
        mine = Claims.is_mine(claims, folder)
        if not mine:
            thief.give_back(folder)  # the other gives it up again
        return mine

    engine.fail = steal  # type: ignore[assignment]
    claims.is_mine = is_mine  # type: ignore[method-assign]
    report = run([config()], engine, out, claims=claims)
    assert report.failed == 0 and "another process has taken it over" in out.getvalue()
    assert [outcome.folder for outcome in report.outcomes] == folders
    (cell,) = read_cells(tmp_path)
    assert cell.done and cell.status["attempt"] == 2


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
