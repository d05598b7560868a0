"""A run that was stopped inside a lane goes on there, and ends with the bytes of one that nobody stopped."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.config import PackConfig
from lynx_exp.engine import Engine
from lynx_exp.run.interrupt import Interrupted, Preempted
from lynx_exp.run.run_progress import Progress
from tests.run.lab import POINTS, Lab, cell, found, statuses
from tests.run.lane_kills import CELLS, SCIENCE, Killed, kept, kept_every, kill, not_run_again, undisturbed

__all__ = ["undisturbed"]


@pytest.mark.parametrize(("behind", "every"), [(1, 1), (9, 1), (9, 4), (16, 5)])
def test_a_killed_run_goes_on_within_its_lanes(lab, undisturbed, behind, every):
    folder = lab.folder()
    kill(lab, CELLS, folder, behind=behind, every=every)
    assert kept(folder) and statuses(folder) == ["running"] * 3, "nobody could say that it ended"
    lab.run(CELLS, folder)
    assert found(folder) == undisturbed
    assert not_run_again(folder) > 0 and "went on where an earlier attempt had stopped" in lab.text()
    assert not list(folder.rglob("*.safetensors"))


def test_killed_again_and_again_it_still_ends_and_never_counts_as_failing(lab, undisturbed):
    """Each attempt gets five steps further, and the first completes no lane."""
    folder, kills = lab.folder(), 0
    configs = [replace(config, max_failures=2) for config in CELLS]
    while True:
        with kept_every(5, killed_behind=5):
            try:
                lab.run(configs, folder)
                break
            except Killed:
                kills += 1
    assert kills > 4
    for name, files in found(folder).items():  # but for config.yaml
        for file in SCIENCE:
            assert files[file] == undisturbed[name][file]


def test_a_kill_before_anything_was_kept_costs_the_lanes_as_before(lab, undisturbed):
    folder = lab.folder()
    kill(lab, CELLS, folder, behind=3, every=99)
    assert not kept(folder)
    lab.run(CELLS, folder)
    assert found(folder) == undisturbed and not_run_again(folder) == 0


SWEEPS = st.fixed_dictionaries(
    {
        "cells": st.lists(st.tuples(st.sampled_from(POINTS), st.sampled_from([1, 3, 7])), min_size=1, max_size=4),
        "batching": st.sampled_from(["static", "continuous"]),
        "waves": st.integers(1, 3),
        "tail": st.sampled_from(["filler", "drain"]),
        "seed": st.integers(0, 3),
    }
)


def check_any_sweep(lab: Lab, sweep: dict[str, Any], stops: list[int], every: int, rows: list[int]) -> None:
    """Also in physical batches of other sizes at each attempt."""
    shared = {key: value for key, value in sweep.items() if key != "cells"}
    configs = [cell(point, ("long", "short"), batch_size=size, **shared) for point, size in sweep["cells"]]
    whole, folder = lab.folder(), lab.folder()
    lab.run(configs, whole)
    for stop, most in zip(stops, rows, strict=False):
        with kept_every(every, killed_behind=stop):
            try:
                lab.run([replace(config, pack=PackConfig(max_rows=most)) for config in configs], folder)
            except Killed:
                continue
    lab.run(configs, folder)
    made, expected = found(folder), found(whole)
    assert made.keys() == expected.keys()
    for name, files in expected.items():
        for file in (*SCIENCE, "prefill.parquet"):
            assert made[name].get(file) == files.get(file), (name, file)


CASES = {
    "sweep": SWEEPS,
    "stops": st.lists(st.integers(1, 30), min_size=1, max_size=3),
    "every": st.integers(1, 5),
    "rows": st.lists(st.sampled_from([4, 11, 256]), min_size=3, max_size=3),
}


@settings(max_examples=3, deadline=None)
@given(**CASES)
def test_any_sweep_killed_anywhere_ends_with_the_same_bytes(model, tmp_path_factory, sweep, stops, every, rows):
    check_any_sweep(Lab(model=model, root=tmp_path_factory.mktemp("any")), sweep, stops, every, rows)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(**CASES)
def test_many_sweeps_killed_anywhere(model, tmp_path_factory, sweep, stops, every, rows):
    check_any_sweep(Lab(model=model, root=tmp_path_factory.mktemp("many")), sweep, stops, every, rows)


@contextmanager
def signalled(step: int, *numbers: int) -> Iterator[list[int]]:
    """The run is sent signals in the middle of a step; how many steps it has done since then."""
    real, seen = Progress.step, 0
    since: list[int] = []

    def stepped(self: Progress, tokens: int, rows: int) -> None:
        nonlocal seen
        seen += 1
        if since:
            since[0] += 1
        if seen == step:
            since.append(0)
            for number in numbers:
                os.kill(os.getpid(), number)
        real(self, tokens, rows)

    # what a shell starts in the background ignores Ctrl-C, and so would these tests
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "step", stepped)
        try:
            yield since
        finally:
            assert signal.signal(signal.SIGINT, before) is signal.default_int_handler, "the run gave it back"


@pytest.mark.parametrize(
    ("number", "stop", "state"), [(signal.SIGTERM, Preempted, "preempted"), (signal.SIGINT, Interrupted, "interrupted")]
)
def test_a_signal_waits_for_the_end_of_the_step_and_loses_nothing(lab, undisturbed, number, stop, state):
    folder = lab.folder()
    with signalled(12, number) as since, pytest.raises(stop, match="0 of 3 cells done.* unfinished lanes saved"):
        lab.run(CELLS, folder)
    assert since == [0], "no further step was begun"
    assert statuses(folder) == [state] * 3 and kept(folder)
    lab.run(CELLS, folder)
    assert found(folder) == undisturbed and not_run_again(folder) > 0


def test_the_second_signal_stops_at_once(lab, undisturbed):
    folder = lab.folder()
    with signalled(12, signal.SIGINT, signal.SIGINT), pytest.raises(Interrupted):
        lab.run(CELLS, folder)
    assert not kept(folder)
    lab.run(CELLS, folder)
    assert found(folder) == undisturbed


def test_a_signal_does_not_wait_for_a_step_that_does_not_end(lab, undisturbed, monkeypatch):
    folder, step = lab.folder(), Progress.step

    def stepped(self: Progress, tokens: int, rows: int) -> None:
        step(self, tokens, rows)
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            pass

    monkeypatch.setattr("lynx_exp.run.interrupt.PATIENCE_S", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(Progress, "step", stepped)
        lab.run(CELLS, folder)
    assert statuses(folder) == ["preempted"] * 3
    lab.run(CELLS, folder)
    assert found(folder) == undisturbed


def test_switched_off_nothing_is_kept_and_nothing_waits(lab, undisturbed):
    folder = lab.folder()
    off = [replace(config, pack=PackConfig(checkpoint_minutes=0)) for config in CELLS]
    with signalled(12, signal.SIGINT), pytest.raises(Interrupted, match="requests kept; run the same"):
        lab.run(off, folder)
    assert not kept(folder)
    kill(lab, CELLS, folder, behind=9)
    assert kept(folder)
    lab.run(off, folder)
    assert not_run_again(folder) == 0 and not kept(folder)
    for name, files in found(folder).items():
        assert files["responses.parquet"] == undisturbed[name]["responses.parquet"]


def test_a_model_without_slots_is_stopped_as_before_and_loses_whole_lanes(lab, undisturbed, monkeypatch):
    """Its cache is its own."""
    monkeypatch.setattr(Engine, "has_slots", False)
    assert not Engine(lab.model).keeps_lanes
    folder, whole = lab.folder(), lab.folder()
    drains = [replace(config, batching="static") for config in CELLS]
    lab.run(drains, whole)
    with kept_every(1), signalled(6, signal.SIGTERM), pytest.raises(Preempted, match="requests kept; queue"):
        lab.run(drains, folder)
    assert not kept(folder)
    lab.run(drains, folder)
    assert found(folder) == found(whole)


def test_a_wrong_interval_is_refused():
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"pack.checkpoint_minutes=.*: must be at least 0 \(0: never\)"):
            PackConfig(checkpoint_minutes=wrong)


SIGNALLED = """
import math, os, signal, sys
from lynx_exp.cli import main
from lynx_exp.run.lane_checkpoints import LaneCheckpoints

number, at = int(sys.argv.pop(1)), int(sys.argv.pop(1))
real, seen = LaneCheckpoints.between_steps, 0

def between(self, states):
    global seen
    seen += 1
    self._due = -math.inf if seen % 5 == 0 else math.inf
    if seen == at and number == signal.SIGTERM:
        os.kill(os.getpid(), number)
    kept = real(self, states)
    if seen == at:
        os.kill(os.getpid(), number)
    return kept

LaneCheckpoints.between_steps = between
main()
"""
"""States are written every fifth step; the signal comes at the n-th."""


@pytest.mark.slow
def test_a_process_that_is_killed_or_terminated_goes_on_within_its_lanes(tmp_path):
    words = ["task=mini_gsm8k", "policy=lynx", "limit=6", "batch_size=3", "measure.latency=false"]

    def run(name: str, *, number: int = 0, at: int = 0) -> tuple[int, str]:
        call = [sys.executable, "-c", SIGNALLED, str(number), str(at), *words, f"results={tmp_path / name}"]
        done = subprocess.run(call, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert run("whole")[0] == 0
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        name = number.name
        assert run(name, number=number, at=12)[0] == code
        assert kept(tmp_path / name)
        code, said = run(name)
        assert code == 0 and "went on where an earlier attempt had stopped" in said, said
        assert _science(tmp_path / name) == _science(tmp_path / "whole")


def _science(folder: Path) -> list[dict[str, Any]]:
    """Without what names the folder."""
    return [{name: files[name] for name in SCIENCE} for files in found(folder).values()]
