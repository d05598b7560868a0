"""Processes of several machines on one cell, stopped before any step of the file system: threads that go on only when
they are told to, with a clock of their own."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.store.cell_writer import CellWriter, tidy
from lynx_exp.store.claims import STALE_S, ClaimOnDisk, Claims
from lynx_exp.store.faults import Fault
from lynx_exp.store.hold import ClaimLost
from lynx_exp.store.holders import Holder
from lynx_exp.store.read import is_done
from lynx_exp.store.tables import RESPONSES, LaneRecord

STEPS = ((os, "rename"), (os, "replace"), (os, "mkdir"), (tempfile, "mkstemp"))
"""Before each of these a process may be stopped."""
PLAN = {"task": {"lanes": [[0, 1], [2]], "digest": "d", "batch_size": 2, "seed": 0}}


class Ended(BaseException):
    """The test is over: leave."""


class World:
    """One cell, a clock, and what happened."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 0.0
        self.beaten: dict[str, float] = {}
        """When the heart of a claim beat last, by its token."""
        self.commits = 0
        self.tally: Counter[str] = Counter()
        self._mine = threading.local()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(os, "fsync", lambda _descriptor: None)
        for where, name in STEPS:
            self._patch.setattr(where, name, self._stopping(getattr(where, name)))

    def _stopping(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            process: Process | None = getattr(self._mine, "process", None)
            if process is not None:
                process.wait()
            made = real(*args, **more)
            self.commits += real.__name__ == "replace" and Path(args[1]) == self.folder / "DONE"
            return made

        return step

    def enter(self, process: Process) -> None:
        """The calling thread is the process from here on."""
        self._mine.process = process

    def close(self) -> None:
        self._patch.undo()


class Watched(Claims):
    """Whose judgements are checked: nobody is taken for dead whose heart has beaten within `STALE_S`."""

    def __init__(self, world: World, host: str) -> None:
        super().__init__(beat_s=1e6, clock=lambda: world.now, me=self._me)
        self._world, self._host, self._count = world, host, 0

    def _me(self) -> Holder:
        self._count += 1
        token = f"{self._host}-{self._count}"
        self._world.beaten[token] = self._world.now
        return Holder(token=token, host=self._host, boot=self._host, pids="", pid=1, born="1", job=None)

    def _is_stale(self, folder: Path, found: ClaimOnDisk) -> bool:
        stale = super()._is_stale(folder, found)
        if stale:
            assert found.holder is not None and self._world.now - self._world.beaten[found.holder.token] > STALE_S
            self._world.tally["taken for dead"] += 1
        return stale

    def beat(self) -> None:
        super().beat()
        for hold in list(self._held.values()):
            if hold.is_valid():
                self._world.beaten[hold.claim.name] = self._world.now


class Process:
    """Works on the cell until it is done. `fails`: so often its attempts end in an error first."""

    def __init__(self, world: World, name: str, fails: int = 0) -> None:
        self.world, self.name, self._fails = world, name, fails
        self.claims = Watched(world, name)
        self.stopped = self.killed = self.over = False
        self.error: BaseException | None = None
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._paused.acquire()

    def wait(self) -> None:
        """In its own thread: until it may go on."""
        if self._ended:
            raise Ended
        self._paused.release()
        self._go.acquire()
        if self._ended:
            raise Ended

    def step(self) -> None:
        """One step further."""
        if not self.over:
            self._go.release()
            self._paused.acquire()
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        self._ended = True
        if not self.over:
            self._go.release()
        self._thread.join()
        self.claims._stop.set()

    def _run(self) -> None:
        self.world.enter(self)
        try:
            self.wait()
            while not is_done(self.world.folder):
                self._try()
                self.wait()
            tidy(self.world.folder, self.claims)
        except Ended:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.over = True
            self._paused.release()

    def _try(self) -> None:
        folder = self.world.folder
        if not self.claims.take(folder):
            return
        try:
            if not is_done(folder):
                self._attempt()
                self.world.tally["done"] += 1
        except ClaimLost:
            self.world.tally["lost"] += 1
        finally:
            if not self._ended:
                self.claims.give_back(folder)

    def _attempt(self) -> None:
        told = {"who": self.name}
        hold = self.claims.hold(self.world.folder)
        writer = CellWriter.open(hold, info={"schema": 0}, config_yaml="a: 1\n", provenance=told, plan=PLAN)
        for lane in writer.missing("task"):
            writer.commit(lane_of(lane))
        if self._fails:
            self._fails -= 1
            writer.fail(Fault(kind="other", cls="X", message=self.name), self.name)
            self.world.tally["failed"] += 1
            return
        writer.finish(samples=[], metrics=told)


def lane_of(lane: int) -> LaneRecord:
    rows = [dict.fromkeys(RESPONSES.names) | {"request": request} for request in PLAN["task"]["lanes"][lane]]  # type: ignore[index]
    return LaneRecord(subtask="task", lane=lane, rows=rows, live_rows=[], active_experts=[])
