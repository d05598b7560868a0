"""What is on the screen while cells run, and how much longer it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from lynx_exp.config import MeasureConfig
from lynx_exp.run import run_progress as progress_module
from lynx_exp.run.planned_cell import Cell
from lynx_exp.run.prepare_cells import prepare_cells
from lynx_exp.run.progress_bar import bar
from lynx_exp.run.run_progress import Estimate, Progress, clock, work_of

LYNX = {"name": "lynx", "alpha": 3.0, "beta": 2, "min_batch": 2}


def test_time_left_uses_the_most_similar_work():
    estimate = Estimate()
    assert estimate.left([(("a", 4), 10)]) is None
    estimate.add(("a", 4), seconds=10, units=5)
    estimate.add(("a", 16), seconds=5, units=5)
    estimate.add(("measure", 4), seconds=100, units=1)
    assert estimate.left([(("a", 4), 3)]) == pytest.approx(6)
    assert estimate.left([(("a", 8), 2)]) == pytest.approx(3)  # the mean of both batch sizes
    assert estimate.left([(("b", 4), 2)]) == pytest.approx(3)  # measuring says nothing about requests
    assert estimate.left([(("measure", 16), 1)]) == pytest.approx(100)
    assert estimate.left([]) is None


@pytest.mark.parametrize(("seconds", "shown"), [(None, "?"), (0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown


class Screen:
    """A terminal of 100 columns, or a file; `now` is the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.out = 100.0, StringIO()
        monkeypatch.setattr(progress_module, "monotonic", lambda: self.now)

    def progress(self, cells: Sequence[Cell], *, live: bool) -> Progress:
        return Progress(cells, Console(file=self.out, width=100, force_terminal=live, legacy_windows=False))

    def lines(self) -> list[str]:
        """Each state of each line, in the order in which they were drawn."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.out.getvalue())
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch)


@pytest.fixture
def cells(bench: Any, config: Any) -> list[Cell]:
    """Vanilla at two batch sizes, one policy; 5 requests each."""
    return prepare_cells([config(), config(LYNX), config(batch_size=3)], bench.load)


def test_the_work_of_a_cell(bench, config):
    measured = config(LYNX, ("gen", "choice"), fidelity=True, measure=MeasureConfig(latency=True), batch_size=3)
    (cell,) = prepare_cells([measured], bench.load)
    assert work_of(cell) == {("gen", 3): 5, ("choice", 3): 10, ("measure", 3): 1, ("fidelity", 3): 1}


def half_of_a_pack(screen: Screen, progress: Progress, cells: Sequence[Cell]) -> None:
    """3 of 8 lanes, 6 of 15 requests, in 12 seconds."""
    progress.begin(cells)
    lanes = progress.lanes(8)
    for cell in cells:
        screen.now += 4.0
        progress.step(300, 7)
        lanes.done()
        progress.advance(cell, ("gen", cell.config.batch_size), 2)


def test_the_live_line_of_a_pack(screen, cells):
    with screen.progress(cells, live=True) as progress:
        half_of_a_pack(screen, progress, cells)
    line = screen.lines()[-1]
    assert len(line) <= 100
    assert re.fullmatch(r" ?0/3 cells \S+ pack of 3: task 7 rows, 3/8 lanes 75 tok/s ETA 0:18", line), line


def test_the_live_line_goes_on_from_task_to_task(screen, cells):
    with screen.progress(cells, live=True) as progress:
        half_of_a_pack(screen, progress, cells)
        progress.lanes(5)  # of what is tried again alone, or of the next task
        progress.step(300, 2)
        screen.now += 1.0
        progress.step(300, 2)
    assert "2 rows, 3/8 lanes" in screen.lines()[-1]


def test_the_live_line_without_rows_says_nothing_of_lanes(screen, cells):
    with screen.progress(cells, live=True) as progress:
        half_of_a_pack(screen, progress, cells)
        screen.now += 1.0
        progress.tokens(100)  # scoring, or measuring
    assert "rows" not in screen.lines()[-1] and "lanes" not in screen.lines()[-1]


def test_the_live_line_of_one_cell(screen, cells):
    with screen.progress(cells, live=True) as progress:
        progress.begin([cells[1]])
        lanes = progress.lanes(3)
        screen.now += 2.0
        progress.step(10, 2)
        lanes.done()
    line = screen.lines()[-1]
    assert "0/3 cells" in line and "task lynx(alpha=3, beta=2) batch 2 2 rows, 1/3 lanes" in line
    assert line.endswith("5 tok/s ETA ?"), "nothing is known before the first requests are done"


def test_of_a_line_that_is_too_long_only_the_name_is_cut(screen, bench, config):
    (cell,) = prepare_cells([config(LYNX | {"alpha": 0.123456}, layers="0,1:", batch_size=5)], bench.load)
    with screen.progress([cell], live=True) as progress:
        progress.begin([cell])
        lanes = progress.lanes(12345)
        screen.now += 20.0
        progress.step(246912, 256)
        lanes.done()
        progress.advance(cell, ("gen", 5), 1)
    line = screen.lines()[-1]
    assert len(line) == 100
    assert re.fullmatch(r"0/1 cells \S{16} task lynx\(.*… 256 rows, 1/12345 lanes 12346 tok/s ETA 1:20", line), line


def test_plain_lines_of_a_pack(screen, cells):
    with screen.progress(cells, live=False) as progress:
        half_of_a_pack(screen, progress, cells)
        assert screen.lines() == [], "no live line"
        progress.packed()
        for cell in cells:
            progress.end(cell, "done")
    assert screen.lines() == [
        "pack of 3: task: 3 lanes, 900 tokens in 12.0 s (75 tok/s)",
        "1/3 task vanilla batch 2: done, ETA 0:12",
        "2/3 task lynx(alpha=3, beta=2) batch 2: done, ETA 0:06",
        "3/3 task vanilla batch 3: done",
    ]


def test_plain_lines_of_cells_one_by_one(screen, cells):
    with screen.progress(cells, live=False) as progress:
        for cell in cells[:2]:
            progress.begin([cell])
            lanes = progress.lanes(3)
            screen.now += 5.0
            progress.step(60, 2)
            lanes.done()
            progress.advance(cell, ("gen", cell.config.batch_size), 5)
            progress.packed()
            progress.end(cell, "done")
    assert screen.lines() == [
        "1/3 task vanilla batch 2: done in 5.0 s, 12 tok/s, ETA 0:10",
        "2/3 task lynx(alpha=3, beta=2) batch 2: done in 5.0 s, 12 tok/s, ETA 0:05",
    ]


def test_what_was_found_done_is_not_taken_for_speed(screen, cells):
    with screen.progress(cells, live=False) as progress:
        progress.begin(cells)
        progress.advance(cells[0], ("gen", 2), 5, run=False)
        assert progress.eta() is None
        screen.now += 8.0
        progress.advance(cells[1], ("gen", 2), 4)
        assert progress.eta() == pytest.approx((1 + 5) * 2.0)


def test_a_run_in_packs_says_all_of_this(bench, config):
    bench.run([config(), config(LYNX), config(batch_size=3)])
    assert re.match(
        r"pack of 3: task: 8 lanes, 45 tokens in \d+\.\d s( \(\d+ tok/s\))?\n(.*lanes drained.*\n)*1/3 task ",
        bench.text(),
    )
    found = r"acc 60\.0 %, \d\.\d experts"
    assert re.search(rf"^1/3 task vanilla batch 2: done, {found}, ETA \d+:\d\d$", bench.text(), re.MULTILINE)


def test_a_bar_only_on_a_terminal(capsys, monkeypatch):
    assert list(bar(["fig2", "fig3"])) == ["fig2", "fig3"]
    said = capsys.readouterr()
    assert said.out == "" == said.err.strip()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert list(bar(["fig2", "fig3"])) == ["fig2", "fig3"]
    said = capsys.readouterr()
    assert said.out == "" and "fig3" in said.err and "2/2" in said.err
