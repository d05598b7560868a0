"""Any order of steps of three processes on one cell, any of them stopped, woken or killed before any step: one commit
wins, what it wrote never changes, nobody alive is taken for dead, and the cell is done in the end."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lynx_exp.store.cell_writer import FINISHED_FILES
from lynx_exp.store.claims import CLAIM, STALE_S
from lynx_exp.store.files import read_json, sha256_of
from tests.store.fake_processes import Process, World

TALLY: Counter[str] = Counter()


class Writers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.world = World(self.root / "cell")
        self.processes = [Process(self.world, name, fails=number % 2) for number, name in enumerate("abc")]
        self.done: dict[str, str] | None = None

    def awake(self) -> list[Process]:
        return [process for process in self.processes if not (process.stopped or process.killed or process.over)]

    @initialize(number=st.integers(0, 2), before=st.integers(1, 50), after=st.integers(1, 60))
    def one_is_stopped_in_the_middle(self, number: int, before: int, after: int) -> None:
        self.go_on(number, before)
        self.one_sleeps_while_another_works(number, STALE_S + 1, after)

    @rule(number=st.integers(0, 2), steps=st.integers(1, 40))
    def go_on(self, number: int, steps: int) -> None:
        process = self.processes[number]
        for _ in range(steps):
            if process in self.awake():
                process.step()
                self.bytes_of_a_done_cell_never_change()

    @precondition(lambda self: self.awake())
    @rule(number=st.integers(0, 2))
    def stop(self, number: int) -> None:
        self.processes[number].stopped = True

    @rule(number=st.integers(0, 2))
    def wake(self, number: int) -> None:
        self.processes[number].stopped = False

    @rule(number=st.integers(0, 2), really=st.integers(0, 3))
    def kill(self, number: int, really: int) -> None:
        self.processes[number].killed |= really == 3

    @rule(seconds=st.sampled_from([1.0, 15.0, STALE_S - 1, STALE_S + 1]))
    def time_goes_by(self, seconds: float) -> None:
        """Hearts beat at least every 15 s, but those of the stopped."""
        while seconds > 0:
            self.world.now += min(seconds, 15.0)
            seconds -= 15.0
            for process in self.awake():
                process.claims.beat()

    @rule(number=st.integers(0, 2), seconds=st.sampled_from([STALE_S / 2, STALE_S + 1]), steps=st.integers(1, 60))
    def one_sleeps_while_another_works(self, number: int, seconds: float, steps: int) -> None:
        self.stop(number)
        for _ in range(3):
            self.time_goes_by(seconds)
            for other in range(3):
                self.go_on(other, steps)
        self.wake(number)
        self.go_on(number, 3)

    @invariant()
    def bytes_of_a_done_cell_never_change(self) -> None:
        done: Any = read_json(self.world.folder / "DONE") or {}
        files = done.get("files")
        assert files is not None or self.done is None, "DONE is gone"
        if files is not None:
            self.done = self.done or files
            assert files == self.done
            assert {name: sha256_of(self.world.folder / name) for name in files} == files

    @invariant()
    def one_commit_wins(self) -> None:
        assert self.world.commits <= 1

    def teardown(self) -> None:
        try:
            self.in_the_end()
        finally:
            for process in self.processes:
                process.end()
            self.world.close()
            shutil.rmtree(self.root)
            TALLY.update(self.world.tally)

    def in_the_end(self) -> None:
        """All that live go on; if none does, somebody gives the command again."""
        self.processes.append(Process(self.world, "last"))
        for process in self.processes:
            process.stopped = False
        for _ in range(60):
            for process in self.awake():
                for _ in range(20):
                    process.step()
                    self.bytes_of_a_done_cell_never_change()
            self.time_goes_by(STALE_S / 8)
        assert not self.awake() and self.world.commits == 1
        folder = self.world.folder
        assert pq.read_table(folder / "responses.parquet").column("request").to_pylist() == [0, 1, 2]
        left = {path.name for path in folder.iterdir()} - {*FINISHED_FILES, "DONE"}
        killed = any(process.killed for process in self.processes)
        assert killed or not left, left
        assert all(name.startswith((f".{CLAIM}.", CLAIM, "lanes", "error.txt")) for name in left), left


def test_any_order_of_steps():
    TALLY.clear()
    run_state_machine_as_test(Writers, settings=settings(max_examples=30, stateful_step_count=12, deadline=None))
    assert TALLY["lost"] and TALLY["taken for dead"] and TALLY["failed"], TALLY


@pytest.mark.slow
def test_many_orders_of_steps(capsys):
    TALLY.clear()
    run_state_machine_as_test(Writers, settings=settings(max_examples=1500, stateful_step_count=60, deadline=None))
    with capsys.disabled():
        print(f"\n1500 orders of steps: {dict(TALLY)}, 0 cells damaged")
