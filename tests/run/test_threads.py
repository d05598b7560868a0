"""How many CPU threads a run takes, by what else the machine does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.run.threads import EVERY_S, LOOKS, ThreadChooser, busy_cores, set_spin


class Machine:
    """Busy cores as scripted, the last for ever; its clock moves when told."""

    def __init__(self, busy: Iterable[float | None], cores: int = 4, most: int = 4) -> None:
        self._busy: Iterator[float | None] = iter(busy)
        self._last: float | None = 0.0
        self.now, self.applied, self.said = 0.0, [], []
        self.chooser = ThreadChooser(
            most,
            self.applied.append,
            self.said.append,
            cores=cores,
            look=self.look,
            clock=lambda: self.now,
            pause=lambda seconds: None,
        )

    def look(self) -> float | None:
        self._last = next(self._busy, self._last)
        return self._last

    def watch(self, seconds: float) -> None:
        for _ in range(int(seconds / EVERY_S)):
            self.now += EVERY_S
            self.chooser.watch()


def test_an_idle_machine_keeps_all_threads_and_says_nothing():
    machine = Machine([0])
    machine.chooser.start()
    machine.watch(60)
    assert machine.chooser.threads == 4 and machine.said == []


@pytest.mark.parametrize(("busy", "threads"), [(1, 3), (2.4, 1), (3, 1), (10, 1)])
def test_busy_cores_are_left_to_others(busy, threads):
    machine = Machine([busy])
    machine.chooser.start()
    assert machine.chooser.threads == threads and machine.applied[-1] == threads
    assert len(machine.said) == 1 and "this machine is busy" in machine.said[0]


def test_looked_at_again_during_a_run_both_ways_and_one_look_decides_nothing():
    machine = Machine([0] * LOOKS + [9] + [0] * 10 + [9] * LOOKS + [0])
    machine.chooser.start()
    machine.watch(12)
    assert machine.chooser.threads == 4 and machine.said == []
    machine.watch(LOOKS)
    assert machine.chooser.threads == 1
    machine.watch(3 * LOOKS)
    assert machine.chooser.threads == 4
    assert [line.split(":")[0] for line in machine.said] == [
        "this machine is busy (9 other threads want its 4 cores)",
        "cores are free again",
    ]


def test_threads_stay_while_steps_are_timed():
    machine = Machine([0] * LOOKS + [9])
    machine.chooser.start()
    with machine.chooser.fixed():
        machine.watch(60)
        assert machine.chooser.threads == 4
    machine.watch(2 * LOOKS)
    assert machine.chooser.threads == 1


def test_looks_at_most_once_a_second():
    looks = []
    machine = Machine([0])
    machine.chooser._look = lambda: looks.append(1) or 0.0
    for _ in range(1000):
        machine.now += EVERY_S / 100
        machine.chooser.watch()
    assert 9 <= len(looks) <= 11


def test_a_kernel_that_tells_nothing_leaves_the_threads_alone(tmp_path):
    assert busy_cores(tmp_path) is None
    machine = Machine([None])
    machine.chooser.start()
    machine.watch(60)
    assert machine.chooser.threads == 4 and machine.said == []


def test_own_threads_are_not_others(tmp_path):
    (tmp_path / "loadavg").write_text("0.1 0.2 0.3 5/96 1234\n")
    for number, state in enumerate("RRS"):
        (tmp_path / f"self/task/{number}").mkdir(parents=True)
        (tmp_path / f"self/task/{number}/stat").write_text(f"{number} (a ) name) {state} 1 2 3\n")
    assert busy_cores(tmp_path) == 3


@given(st.lists(st.floats(0, 50), min_size=1, max_size=40), st.integers(1, 64), st.integers(1, 64))
def test_always_from_one_to_the_most(busy, cores, most):
    machine = Machine(busy, cores, most)
    machine.chooser.start()
    machine.watch(len(busy) * EVERY_S)
    assert all(1 <= threads <= most for threads in machine.applied)


def test_what_the_user_sets_is_kept():
    free: dict[str, str] = {}
    set_spin(free)
    assert list(free) == ["GOMP_SPINCOUNT"]
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        mine = {name: "7"}
        set_spin(mine)
        assert mine == {name: "7"}


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path):
    files = {}
    for threads in ("1", "2"):
        command = "from lynx_exp.cli import main; main()"
        grid = ["task=mini_truthfulqa,mini_gsm8k,mini_wmt16", "policy=vanilla,lynx,coverage", "batch_size=1,16"]
        subprocess.run(
            [sys.executable, "-c", command, "-m", *grid, "limit=24", "fidelity=true", f"results={tmp_path / threads}"],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            check=True,
        )
        root = tmp_path / threads
        files[threads] = {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}
    assert len(files["1"]) >= 60 and files["1"] == files["2"]
