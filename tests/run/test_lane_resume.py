"""A run that was stopped inside a lane goes on there, and ends with the bytes of one that nobody stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from lynx_exp.checks.all_rules import Validation
from lynx_exp.config import Config, PackConfig
from lynx_exp.engine import Engine
from lynx_exp.engine.decoding.lane_state import LaneState, States
from lynx_exp.engine.kv_cache.kept import Part
from lynx_exp.run.interrupt import Interrupted, Preempted
from lynx_exp.run.lane_checkpoints import SHARE, LaneCheckpoints
from lynx_exp.run.run_progress import Progress
from lynx_exp.run.state_file import DTYPES, HASH, Unusable, read_state, write_state
from lynx_exp.store.hold import Hold
from lynx_exp.store.read import read_cells
from tests.run.lab import POINTS, Lab, cell, found, statuses

CELLS = [
    cell(POINTS[1], ("long", "short"), batch_size=3, waves=2),
    cell(POINTS[4], ("long", "short"), batch_size=2, waves=2),
    cell(POINTS[0], ("long", "short"), batch_size=7, waves=2),
]


SCIENCE = ("responses.parquet", "steps.parquet", "samples.parquet", "metrics.json", "plan.json")


class Killed(BaseException):
    """As SIGKILL: nobody writes anything any more."""


@contextmanager
def kept_every(steps: int, *, killed_behind: int | None = None) -> Iterator[None]:
    """States are written by count instead of by the clock, and the run is killed behind a step."""
    real, seen = LaneCheckpoints.between_steps, 0

    def between(self: LaneCheckpoints, states: States) -> bool:
        nonlocal seen
        seen += 1
        self._due = -math.inf if seen % steps == 0 else math.inf
        kept = real(self, states)
        if seen == killed_behind:
            raise Killed
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaneCheckpoints, "between_steps", between)
        yield


def kill(lab: Lab, configs: list[Config], folder: Path, *, behind: int, every: int = 1) -> None:
    with kept_every(every, killed_behind=behind), pytest.raises(Killed):
        lab.run(configs, folder)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("lanes/*.safetensors"))


def not_run_again(folder: Path) -> int:
    """Steps, as the records of finished cells tell."""
    notes = [note for record in read_cells(folder) for note in record.status["notes"] if "went on" in note]
    return sum(int(note.split("; ")[1].split()[0]) for note in notes)


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory) -> dict[str, dict[str, Any]]:
    lab = Lab(model=model, root=tmp_path_factory.mktemp("undisturbed"))
    folder = lab.folder()
    lab.run(CELLS, folder)
    return found(folder)


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


def _of_another(kind: str) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        of = json.loads(_head(path)["__metadata__"]["state"])["of"]
        state = read_state(path, of, int(of["lane"]))
        parts = {name: Part.of(part.make().clone()) for name, part in state.parts.items()}
        with path.open("wb") as file:
            write_state(file, of | {kind: "other"}, replace(state, parts=parts))

    return rewrite


def _head(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None  # type: ignore[func-returns-value]


def _described(state: object) -> Callable[[Path], None]:
    """The hash is right, and what the file says of itself is not."""

    def rewrite(path: Path) -> None:
        content, head = path.read_bytes(), _head(path)
        behind = 8 + int.from_bytes(content[:8], "little")
        text = json.dumps(head | {"__metadata__": {"state": json.dumps(state)}}).encode()
        text += b" " * (-len(text) % 8)
        whole = len(text).to_bytes(8, "little") + text + content[behind:-32]
        path.write_bytes(whole + hashlib.sha256(whole).digest())

    return rewrite


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (_with_bytes(lambda content: content[: len(content) // 2]), "is damaged"),
    "empty": (_with_bytes(lambda content: b""), "is damaged"),
    "garbage": (_with_bytes(lambda content: b"\x00\xff garbage \n" * 20), "is damaged"),
    "one bit": (_with_bytes(lambda content: content[:-99] + bytes([content[-99] ^ 4]) + content[-98:]), "is damaged"),
    "longer": (_with_bytes(lambda content: content + b" "), "is damaged"),
    "says nothing": (_described({}), "is damaged"),
    "a list": (_described([1]), "is damaged"),
    "of a list": (_described({"of": [], "about": {}}), "is damaged"),
    "other code": (_of_another("code"), "is of another code"),
    "other plan": (_of_another("batch plan"), "is of another batch plan"),
    "other cell": (_of_another("cell"), "is of another cell"),
    "other policy": (_of_another("policy"), "is of another policy"),
    "other torch": (_of_another("packages.torch"), "is of another packages.torch"),
    "other form": (_of_another("form"), "is of another form"),
}


@pytest.fixture(scope="module")
def stopped(model, tmp_path_factory) -> Path:
    lab = Lab(model=model, root=tmp_path_factory.mktemp("stopped"))
    folder = lab.folder()
    kill(lab, CELLS[:1], folder, behind=9)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_or_stale_is_named_once_and_never_used(damage, lab, undisturbed, stopped):
    folder = lab.folder()
    folder.rmdir()
    shutil.copytree(stopped, folder)
    change, why = DAMAGE[damage]
    for path in kept(folder):
        change(path)
    lab.run(CELLS[:1], folder)
    (made,) = found(folder).items()
    assert made[1] == undisturbed[made[0]] and not_run_again(folder) == 0
    for path in kept(stopped):
        assert lab.text().count(f"{path.name}: {why}") == 1
    assert "not used, and the lane begins anew" in lab.text()


def test_validate_knows_what_a_stopped_run_goes_on_from(lab, stopped):
    folder = lab.folder()
    folder.rmdir()
    shutil.copytree(stopped, folder)
    assert kept(folder) and "leftovers" not in {finding.rule for finding in Validation(root=folder).run()}
    state = kept(folder)[0]
    state.with_suffix(".json").write_text("{}")
    said = [finding for finding in Validation(root=folder).run() if finding.rule == "leftovers"]
    assert [finding.file for finding in said] == [f"lanes/{state.name}"], "of a lane that is committed"


def test_the_state_of_another_lane_under_its_name_is_not_used(lab, undisturbed, stopped):
    folder = lab.folder()
    folder.rmdir()
    shutil.copytree(stopped, folder)
    first, *others = kept(folder)
    for path in others:
        path.write_bytes(first.read_bytes())
    lab.run(CELLS[:1], folder)
    (made,) = found(folder).items()
    assert made[1] == undisturbed[made[0]]
    assert lab.text().count("is of another lane") == len(others) > 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
def test_a_disk_that_takes_no_state_costs_one_line(lab, undisturbed, monkeypatch, number):
    folder, write = lab.folder(), Hold.write

    def full(self: Hold, path: Path, content: Any) -> None:
        if path.suffix == ".safetensors":
            raise OSError(number, os.strerror(number))
        write(self, path, content)

    monkeypatch.setattr(Hold, "write", full)
    with kept_every(2):
        assert lab.run(CELLS, folder).failed == 0
    assert found(folder) == undisturbed
    assert lab.text().count(f"states of lanes under way are not written: [Errno {number}]") == 1


def test_a_disk_that_is_nearly_full_is_left_alone(lab, undisturbed, monkeypatch):
    folder = lab.folder()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with kept_every(2):
        assert lab.run(CELLS, folder).failed == 0
    assert found(folder) == undisturbed and not kept(folder)
    assert "and the disk has 0.0 GiB left" in lab.text()


class Writer:
    """Counts what it is given, which takes a while."""

    def __init__(self, clock: SimpleNamespace, takes_s: float) -> None:
        self.clock, self.takes_s, self.written = clock, takes_s, 0
        self.plan = {"task": {"digest": "d"}}

    def keep(self, subtask: str, lane: int, write: Any) -> None:
        self.clock.now += self.takes_s
        self.written += 1

    def note_kept(self) -> None:
        pass


@pytest.mark.parametrize(("takes_s", "times"), [(0.0, 10), (1.0, 10), (60.0, 2)])
def test_states_are_written_by_the_clock_and_take_a_small_share_of_it(tmp_path, takes_s, times):
    """100 minutes of steps of a second, of which writing adds to the clock."""
    clock = SimpleNamespace(now=0.0)
    writer, progress = Writer(clock, takes_s), Progress([], Console(quiet=True))
    identity = SimpleNamespace(cell_id="c", folder=tmp_path)
    attempt: Any = SimpleNamespace(writer=writer, cell=identity, numerics={}, policy=None)
    keeper = LaneCheckpoints("task", [attempt], [attempt], 10.0, progress, lambda: clock.now)
    state = LaneState(lane=0, about={}, parts={"counts": Part.of(torch.zeros(1, 2, 3))})
    for _ in range(6000):
        clock.now += 1
        keeper.between_steps(lambda: iter([(0, state)]))
    assert writer.written == times
    assert writer.written * takes_s <= 2 * SHARE * clock.now


@settings(max_examples=25, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text("abc.0", min_size=1, max_size=6),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
        max_size=6,
    ),
    about=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3),
)
def test_a_state_file_gives_back_every_byte_and_is_a_safetensors_file(tmp_path_factory, tensors, about):
    path = tmp_path_factory.mktemp("state") / "lane.safetensors"
    made = {name: torch.randn(shape).to(dtype) for name, (dtype, shape) in tensors.items()}
    state = LaneState(lane=3, about=about, parts={name: Part.of(tensor) for name, tensor in made.items()})
    with path.open("wb") as file:
        write_state(file, {"cell": "a"}, state)
    back = read_state(path, {"cell": "a"}, 3)
    assert back.about == about and set(back.parts) == set(made)
    plain = load_file(path)
    assert set(plain) == {*made, HASH}
    for name, tensor in made.items():
        part = back.parts[name]
        assert (part.dtype, part.shape) == (tensor.dtype, tuple(tensor.shape))
        assert part.nbytes == tensor.nbytes
        for given_back in (part.make(), plain[name]):
            assert torch.equal(given_back.view(torch.uint8), tensor.view(torch.uint8))
    with pytest.raises(Unusable, match="is of another cell"):
        read_state(path, {"cell": "b"}, 3)


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
