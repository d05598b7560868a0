"""The artifact: what runs beside what, what a stop leaves, and what is kept of a repetition."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.artifact import page, record, verdicts
from benchmarks.artifact.__main__ import main
from benchmarks.artifact.claims import Claims, Experiment, TextClaim, load
from benchmarks.artifact.compare import Compared, Tolerance
from benchmarks.artifact.pages import ROOT
from benchmarks.artifact.repeat import Processes, Ran, repeat
from benchmarks.artifact.schedule import Schedule, schedule
from lynx_exp.store.files import read_json

TOLERANCES = {"points": Tolerance(absolute=1), "time": Tolerance(ratio=2, is_time=True)}


def experiment(name: str, kind: str = "points", minutes: float = 1, command: str = "python x") -> Experiment:
    claim = TextClaim(page="a.md", text="(1)", got=("a",), kind=kind)
    return Experiment(name=name, says="", command=command, minutes=minutes, writes="json", claims=(claim,))


def ran(one: Experiment) -> Ran:
    return Ran(experiment=one, folder=Path("a"), ended=date(2026, 1, 2), seconds=1.0, status=0, last="", again=True)


def planned(experiments: list[Experiment], jobs: int) -> Schedule:
    found = tuple(sorted(experiments, key=lambda one: one.minutes))
    return schedule(Claims(tolerances=TOLERANCES, experiments=found, given={}), found, jobs)


@given(st.lists(st.tuples(st.sampled_from(["points", "time"]), st.integers(1, 50)), min_size=1, max_size=9), st.data())
def test_each_experiment_has_one_place(drawn: list[tuple[str, int]], data: st.DataObject) -> None:
    every = [experiment(str(at), kind, minutes) for at, (kind, minutes) in enumerate(drawn)]
    jobs = data.draw(st.integers(1, 4))
    plan = planned(every, jobs)
    assert sorted(one.name for one in (*plan.together, *plan.alone)) == sorted(one.name for one in every)
    assert all(one.claims[0].kind == "time" for one in plan.alone)  # type: ignore[union-attr]
    total, timed = sum(one.minutes for one in every), sum(one.minutes for one in plan.alone)
    longest = max((one.minutes for one in plan.together), default=0)
    assert timed + max(longest, (total - timed) / jobs) <= plan.minutes <= total
    assert planned(every, 1).minutes == total
    order: list[str] = []

    def run(one: Experiment, threads: int | None, _: Processes) -> Ran:
        order.append(one.name)
        return ran(one)

    assert len(list(planned(every, 1).run(run, 2))) == len(every)
    assert order == [one.name for one in (*plan.together, *plan.alone)], "one after another"


def test_what_has_times_runs_alone_and_the_rest_at_once() -> None:
    """Two without times wait for each other, which deadlocks unless both run; one with times sees nobody."""
    meeting, running, seen = threading.Barrier(2, timeout=30), set[str](), []

    def run(one: Experiment, threads: int | None, _: Processes) -> Ran:
        running.add(one.name)
        if one.name in "ab":
            assert threads == 2, "four cores among two"
            meeting.wait()
        else:
            assert running == {one.name} and threads is None
        seen.append(one.name)
        running.discard(one.name)
        return ran(one)

    plan = planned([experiment("t", "time", 9), experiment("a"), experiment("b"), experiment("s", "time", 2)], 2)
    assert {one.experiment.name for one in plan.run(run, 4)} == set("abst")
    assert set(seen[:2]) == set("ab") and seen[2:] == ["s", "t"]


def test_a_stop_ends_what_runs_and_begins_nothing_more(tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text("import sys, time\nprint('begun', flush=True)\ntime.sleep(120)\n")
    begun = threading.Event()

    def run(one: Experiment, threads: int | None, processes: Processes) -> Ran:
        return repeat(
            one, tmp_path / one.name, again=False, on_line=lambda _: begun.set(), threads=threads, processes=processes
        )

    def stopped(runs: Iterator[Ran]) -> None:
        """As Ctrl-C does while the main thread waits."""
        quick = next(runs)
        assert quick.status == 0 and quick.last == "1" and begun.wait(30)
        runs.close()  # type: ignore[attr-defined]

    quick = experiment("quick", minutes=1, command="python -c 'import os; print(os.environ[\"OMP_NUM_THREADS\"])'")
    waits = [experiment(name, minutes=9, command=f"python {script}") for name in ("one", "two", "three")]
    plan = replace(planned([quick], 1), together=(quick, *waits), jobs=2)
    stopped(plan.run(run, 2))
    left = [(tmp_path / one.name / "log.txt").exists() for one in waits]
    assert left in ([True, False, False], [True, True, False]), "at most two had begun"
    assert not (tmp_path / "three").exists()
    assert read_json(tmp_path / "one/done.json")["status"] == -signal.SIGTERM, "it did not just run to its end"


def test_a_repetition_is_kept_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "artifact.json"
    assert record.kept(file) == {}

    def outcome(name: str, *found: str) -> verdicts.Outcome:
        compared = tuple(Compared(where="a", printed="1", got="1", verdict=v, numbers=2) for v in found)  # type: ignore[arg-type]
        return verdicts.Outcome(
            experiment=experiment(name), compared=compared, ran=replace(ran(experiment(name)), seconds=90)
        )

    record.keep([outcome("demo", "equal", "off"), outcome("mixed", "equal")], file)
    record.keep([outcome("demo", "equal", "within")], file)
    found = record.kept(file)
    assert str(found["demo"]) == "2 equal, 2 within" and str(found["mixed"]) == "2 equal"
    assert found["demo"].date == "2026-01-02", "of the run, not of its record"
    assert found["demo"].minutes == 1.5 and set(found["demo"].packages) == {"python", *record.PACKAGES}
    lines = list(page.lines(load(), found))
    (row,) = (line for line in lines if line.startswith("| **demo**"))
    assert row.endswith(f"| 3 min | {found['demo'].date}: 2 equal, 2 within |")
    assert sum(line.startswith(f"- {found['demo'].machine}") for line in lines) == 1
    record.keep([replace(outcome("demo"), why="it ended with 1", failed=True)], file)
    assert str(record.kept(file)["demo"]) == "failed: it ended with 1"


def test_the_longest_of_the_repository_has_no_times_and_runs_first() -> None:
    claims = load()
    plan = schedule(claims, [one for one in claims.experiments if one.is_run], 2)
    assert plan.together[0].name == "matched_active" and "demo" in [one.name for one in plan.alone]


def test_the_record_of_the_repository_is_of_claims_that_there_are() -> None:
    assert set(record.kept()) <= {one.name for one in load().experiments if one.is_run}


def test_an_earlier_run_keeps_its_date(tmp_path: Path) -> None:
    one = experiment("one", command="python -c pass")
    first = repeat(one, tmp_path, again=False, on_line=print)
    os.utime(tmp_path / "done.json", (0, 86_400 * 400))
    assert first.again and first.ended == date.today()
    second = repeat(one, tmp_path, again=False, on_line=print)
    assert not second.again and second.ended == date(1971, 2, 5)


def test_a_reader_may_leave() -> None:
    command = f"{sys.executable} -u -m benchmarks.artifact --list | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def test_a_record_is_of_what_runs_now(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in ((["--record", "--compare"], "--record with --compare"), (["--jobs", "0"], "at least 1")):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2 and said in capsys.readouterr().err
