"""`lynx-results status`: where each cell stands, from what its writer and its process leave on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from lynx_exp.results.status import _clock, draw, live_view, watch
from lynx_exp.store.claims import Claims
from lynx_exp.store.files import read_json, write_json
from lynx_exp.store.survey import STATES, CellState, StudyState, Survey
from tests.store.claiming import rewrite
from tests.verbs.study import results, seal
from tests.verbs.sweep import START, Sweep


def look(sweep: Sweep, seconds: float = 100.0) -> StudyState:
    """So long after the sweep's start."""
    (found,) = Survey(root=sweep.study).read_states(START + timedelta(seconds=seconds))
    return found


def at(sweep: Sweep, name: str) -> CellState:
    return next(cell for cell in look(sweep).cells if cell.folder.name == name)


@pytest.fixture
def all_states(sweep: Sweep) -> Sweep:
    """A cell in each state, with one lane committed where there are any."""
    for state in STATES:
        sweep.cell(state, state, lanes=4 if state == "done" else 1)
    sweep.asks_for(*STATES)
    return sweep


def test_every_state_is_told_by_what_is_on_disk(all_states: Sweep) -> None:
    study = look(all_states)
    assert {cell.folder.name: cell.state for cell in study.cells} == {state: state for state in STATES}
    assert study.counts == dict.fromkeys(STATES, 1) and study.failures == {"oom_device": 1}
    assert study.is_bad and not study.is_over and study.others == 0
    by_state = {cell.state: cell for cell in study.cells}
    assert (by_state["done"].lanes, by_state["done"].requests) == ((4, 4), (10, 10))
    for state in ("running", "interrupted", "preempted", "lost", "failed"):
        assert (by_state[state].lanes, by_state[state].requests) == ((1, 4), (3, 10))
    assert (by_state["waiting"].lanes, by_state["waiting"].requests) == ((0, 0), (0, 10))
    assert by_state["failed"].message == "CUDA out of memory" and by_state["failed"].kind == "oom_device"
    assert str(os.getpid()) in str(by_state["running"].holder)
    assert [cell.state for cell in study.cells if cell.holder] == ["running"]


def test_a_claim_of_the_dead_is_no_work(sweep: Sweep) -> None:
    folder = sweep.cell("a", "running", lanes=2)
    assert at(sweep, "a").state == "running"
    rewrite(folder, pid=2**22 + 1, born="0")
    assert (at(sweep, "a").state, at(sweep, "a").holder) == ("lost", None)


def test_a_claimed_cell_is_running_whatever_came_of_it_before(sweep: Sweep) -> None:
    folder = sweep.cell("a", "failed", lanes=1)
    assert sweep.claims.take(folder)
    assert (at(sweep, "a").state, at(sweep, "a").kind) == ("running", None)


def test_done_without_its_mark_is_lost(sweep: Sweep) -> None:
    (sweep.cell("a", "done", lanes=4) / "DONE").unlink()
    assert at(sweep, "a").state == "lost"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "odd"}', '{"state": "failed", "error": "x"}'])
def test_damaged_statuses_stop_nothing(text: str, sweep: Sweep) -> None:
    (sweep.cell("a", "failed", lanes=1) / "status.json").write_text(text)
    (sweep.study / "a" / "plan.json").write_text(text)
    found = at(sweep, "a")
    assert found.state == "damaged" and found.message is not None and found.message.count("\n") == 0


def test_damaged_lanes_are_named(sweep: Sweep) -> None:
    folder = sweep.cell("a", "interrupted", lanes=3)
    (folder / "lanes" / "task-00001.json").write_text("{")
    sweep.begin("a", 0).interrupt()
    assert at(sweep, "a").corrupt == ["task-00001.corrupt"] and at(sweep, "a").lanes == (2, 4)


def test_lanes_that_stopped_under_way_are_counted(sweep: Sweep) -> None:
    """A state of a lane of the plan, not one of another; and not while its cell runs."""
    for name, state in (("a", "preempted"), ("b", "running")):
        folder = sweep.cell(name, state, lanes=1)
        for file in ("task-00001.safetensors", "task-00002.safetensors", "task-00009.safetensors", "x.safetensors"):
            (folder / "lanes" / file).write_bytes(b"")
    sweep.asks_for("a", "b")
    assert at(sweep, "a").states == 2 and at(sweep, "a").lanes == (1, 4)
    told = "study: 2 lanes of 1 cell stopped under way: the same command goes on inside them"
    assert told in shown([look(sweep)]).splitlines()


def test_time_left_by_the_requests_since_the_start(sweep: Sweep) -> None:
    """By hand: 10 + 6 requests in 100 s, 4 + 10 + 7 left in cells that are not over."""
    now = (START + timedelta(seconds=50)).timestamp()
    before = (START - timedelta(seconds=50)).timestamp()
    for name, state, lanes in (("a", "done", 4), ("b", "running", 2), ("c", "waiting", 0), ("d", "failed", 1)):
        sweep.cell(name, state, lanes)
        for file in (sweep.study / name / "lanes").glob("*.json"):
            os.utime(file, (now, now) if name == "b" else (before, before))
    sweep.cell("e", "interrupted", lanes=1)
    for file in (sweep.study / "e" / "lanes").glob("*.json"):
        os.utime(file, (before, before))
    sweep.asks_for(*"abcde")
    status = sweep.study / "a" / "status.json"
    write_json(status, read_json(status) | {"finished": (START + timedelta(seconds=9)).isoformat()})
    seal(sweep.study / "a")
    study = look(sweep, 100.0)
    assert study.requests == (10 + 6 + 0 + 3 + 3, 50)
    assert study.rate == pytest.approx(0.16) and study.eta_s == pytest.approx((4 + 10 + 7) / 0.16)
    write_json(status, read_json(status) | {"attempts": [{"started": "2025-12-31T00:00:00+00:00", "lanes": 2}]})
    seal(sweep.study / "a")
    assert look(sweep, 100.0).rate == pytest.approx(0.11), "half of it was there before"
    sweep.claims.give_back(sweep.study / "b")
    assert look(sweep, 100.0).rate is None and look(sweep, 100.0).eta_s is None, "nobody works"


def test_a_clock_that_went_backwards_gives_no_rate(sweep: Sweep) -> None:
    sweep.cell("a", "running", lanes=2)
    sweep.asks_for("a")
    assert look(sweep, 0.0).rate is None and look(sweep, -50.0).rate is None


def test_cells_of_older_code_are_counted_apart(sweep: Sweep) -> None:
    sweep.cell("old", "interrupted", lanes=1)
    sweep.asks_for("old", "never", started=START - timedelta(days=1))
    (file,) = (sweep.study / "sweeps").glob("*")
    write_json(file, read_json(file) | {"code": "another"})
    assert look(sweep).counts["waiting"] == 1, "it is the latest"
    sweep.cell("new", "done", lanes=4)
    sweep.asks_for("new")
    study = look(sweep)
    assert [cell.folder.name for cell in study.cells] == ["new"] and study.others == 1 and study.is_over
    sweep.asks_for("more", started=START + timedelta(seconds=5))
    assert {cell.folder.name for cell in look(sweep).cells} == {"new", "more"}, "a second sweep of the same code"


def test_without_a_sweep_all_that_is_there_counts(sweep: Sweep) -> None:
    sweep.cell("a", "done", lanes=4)
    sweep.cell("b", "interrupted", lanes=1)
    study = look(sweep)
    assert study.counts["done"] == study.counts["interrupted"] == 1 and study.started is None and study.rate is None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cells=st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 4)), min_size=1, max_size=5),
    seconds=st.integers(1, 999),
)
def test_numbers_add_up(cells: list[tuple[str, int]], seconds: int, tmp_path_factory: Any) -> None:
    claims = Claims()
    sweep = Sweep(tmp_path_factory.mktemp("sums"), claims)
    for number, (state, lanes) in enumerate(cells):
        sweep.cell(str(number), state, 4 if state == "done" else lanes)
    sweep.asks_for(*map(str, range(len(cells))))
    study = look(sweep, seconds)
    claims.close()
    assert sum(study.counts.values()) == len(cells) and sum(study.failures.values()) == study.counts["failed"]
    assert [cell.state for cell in study.cells] == [state for state, _ in cells]
    for cell in study.cells:
        assert 0 <= cell.fresh <= cell.requests[0] <= cell.requests[1] and cell.lanes[0] <= cell.lanes[1]
    assert study.eta_s is None or study.eta_s >= 0


def test_what_is_done_is_looked_at_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.cell("a", "done", lanes=4)
    sweep.cell("b", "interrupted", lanes=1)
    survey = Survey(root=sweep.study)
    first = survey.read_states(START)
    looked: list[Path] = []
    from lynx_exp.store import survey as module

    plain = module._state_of
    monkeypatch.setattr(module, "_state_of", lambda folder, *more: looked.append(folder) or plain(folder, *more))
    assert survey.read_states(START) == first
    assert [folder.name for folder in looked] == ["b"]
    sweep.cell("a", "done", lanes=4)
    survey.read_states(START)
    assert "a" in {folder.name for folder in looked}, "done anew"


def shown(studies: list[StudyState], most: int | None = None) -> str:
    out = StringIO()
    Console(file=out, width=120).print(draw(studies, most))
    return out.getvalue()


def test_the_table(all_states: Sweep) -> None:
    text = shown([look(all_states)])
    head, row, *lines = text.splitlines()
    assert head.split() == ["study", "cells", *STATES, "requests", "a", "second", "ETA"]
    assert row.split()[-13:-2] == ["9", *["1"] * 9, "31/90"]
    assert "study: failed: oom_device 1" in lines
    assert "study: failed: the failed: oom_device: CUDA out of memory" in lines
    assert "study: skipped: the skipped: oom_device: batch 8 ran out of memory" in lines
    assert "study: lost: the lost: 1 of 4 lanes kept" in lines
    assert any(line.endswith(": 1 cell, 1 of 4 lanes") for line in lines)
    few = shown([look(all_states)], most=1)
    assert "study: and 3 lines more (--once shows all)" in few
    assert sum(f"{state}: the {state}" in few for state in ("failed", "lost", "skipped", "damaged")) == 1


def test_a_terminal_is_drawn_until_all_is_over(sweep: Sweep) -> None:
    sweep.cell("a", "running", lanes=1)
    sweep.asks_for("a")
    out, waits = StringIO(), []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            sweep.claims.give_back(sweep.study / "a")
            sweep.cell("a", "done", lanes=4)

    console = Console(file=out, width=100, force_terminal=True)
    (study,) = watch(Survey(root=sweep.study), console, wait)
    assert study.is_over and waits == [1.0, 1.0]
    assert "3/10" in out.getvalue() and "10/10" in out.getvalue()


def test_where_nothing_is_at_work_it_says_how_to_leave(sweep: Sweep) -> None:
    sweep.cell("a", "running", lanes=1)
    sweep.asks_for("a")
    frames = []
    for _ in range(2):
        out = StringIO()
        Console(file=out, width=100).print(live_view([look(sweep)], 3))
        frames.append("no process is at work here now; Ctrl-C ends this view" in out.getvalue())
        sweep.claims.give_back(sweep.study / "a")
    assert frames == [False, True]


def test_ctrl_c_leaves_the_table(sweep: Sweep) -> None:
    sweep.cell("a", "running", lanes=1)
    sweep.asks_for("a")

    def wait(_seconds: float) -> None:
        raise KeyboardInterrupt

    (study,) = watch(Survey(root=sweep.study), Console(file=StringIO(), force_terminal=True), wait)
    assert study.counts["running"] == 1


def test_on_the_command_line(all_states: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert results("status", all_states.study) == 1, "something failed"
    assert "study: failed: the failed: oom_device: CUDA out of memory\n" in capsys.readouterr().out
    assert results("status", "--json", all_states.study) == 1
    (study,) = json.loads(capsys.readouterr().out)["studies"]
    assert study["counts"] == dict.fromkeys(STATES, 1) and study["requests"] == {"committed": 31, "total": 90}
    assert {cell["state"] for cell in study["not_done"]} == set(STATES) - {"done"}
    failed = next(cell for cell in study["not_done"] if cell["state"] == "failed")
    assert failed["kind"] == "oom_device" and failed["lanes"] == {"committed": 1, "total": 4, "under_way": 0}


def test_a_real_study_is_over_and_well(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results("status", ran.parent) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[1:3] == ["6", "6"]


def test_cells_that_cannot_be_trusted(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.begin("a", 4).finish(samples=[], metrics={}, invalid=["all cut off"])
    assert results("status", sweep.study) == 1
    assert "study: invalid: a: all cut off" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_nothing_to_look_at(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert results("status", folder) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("lynx-results: error: ")


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7261, "2:01:01")]
)
def test_clocks(seconds: float | None, text: str) -> None:
    assert _clock(seconds) == text


def test_looking_needs_nothing_heavy(sweep: Sweep, run_python: Callable[[str], None]) -> None:
    sweep.cell("a", "done", lanes=4)
    run_python(
        f"import sys\nfrom lynx_exp.results.main import main\nmain(['status', {str(sweep.study)!r}])\n"
        "found = set(sys.modules) & {'torch', 'pandas', 'transformers', 'hydra', 'lm_eval', 'scipy'}\n"
        "assert not found, found\n"
    )
