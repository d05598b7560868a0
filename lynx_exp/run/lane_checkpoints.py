"""States of lanes under way, written now and then beside the lanes that are committed, so that a run that was killed
goes on within a lane. A stop that is asked for waits for the end of the step, and writes them first."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from lynx_exp.run.attempt import Attempt, note_further
from lynx_exp.run.interrupt import check, is_stopping, waiting
from lynx_exp.run.run_progress import Progress
from lynx_exp.store.hold import ClaimLost
from lynx_exp.wording import as_bytes, counted, first_line

if TYPE_CHECKING:
    from lynx_exp.engine import LaneEngine
    from lynx_exp.engine.decoding.lane_state import LaneState, States

SHARE = 0.02
"""Of the time, that writing takes at most: where it takes long, it is done less often."""


@contextmanager
def kept_lanes(
    task: str, attempts: Sequence[Attempt], together: Sequence[Attempt], engine: LaneEngine, progress: Progress
) -> Iterator[dict[str, Any]]:
    """While the lanes of a pack are decoded: what else `run_jobs` is given, which is nothing where states are not
    wanted, or cannot be had. Inside, a stop waits for the end of a step. `together`: all cells of the pack, `attempts`:
    those that have lanes to run, in the order of their jobs."""
    minutes = attempts[0].cell.config.pack.checkpoint_minutes
    if not minutes or not getattr(engine, "keeps_lanes", False):  # one over a serving engine has no such thing
        yield {}
        return
    keeper = LaneCheckpoints(task, attempts, together, minutes, progress)
    try:
        with waiting():
            yield {"keeper": keeper}
    finally:
        keeper.tell()


class LaneCheckpoints:
    """Of one task of a pack. A `Keeper` of the engine, which it tells of lanes that it finds."""

    def __init__(
        self,
        task: str,
        attempts: Sequence[Attempt],
        together: Sequence[Attempt],
        minutes: float,
        progress: Progress,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """As `kept_lanes`; `minutes`: between two writings, at least."""
        self._task, self._attempts, self._together = task, attempts, together
        self._progress, self._clock = progress, clock
        self._every_s = minutes * 60
        self._due = clock() + self._every_s
        self._warned = False
        self._gone_on: dict[int, list[int]] = {}
        """By job: steps of the lanes that went on."""

    def found(self, job: int, lane: int) -> LaneState | None:
        """The state of the lane that an earlier attempt wrote; what cannot be used is said, removed, and not used."""
        from lynx_exp.run.state_file import Unusable, read_state

        writer = self._attempts[job].writer
        path = writer.state_path(self._task, lane)
        if not path.exists():
            return None
        try:
            state = read_state(path, self._of(job, lane), lane)
        except Unusable as error:
            self._progress.note(f"{path.name}: {error}; not used, and the lane begins anew")
            writer.forget(self._task, lane)
            return None
        self._gone_on.setdefault(job, []).append(state.steps)
        return state

    def between_steps(self, states: States) -> bool:
        """Write them if it is time, or the last. KeyboardInterrupt if a stop was asked for."""
        if is_stopping():
            self._write(states)
            check()
        if self._clock() < self._due:
            return False
        began = self._clock()
        self._write(states)
        now = self._clock()
        self._due = now + max(self._every_s, (now - began) / SHARE)
        return True

    def tell(self) -> None:
        """Write down of each cell what was not run again, and say it of all of them."""
        for job, steps in self._gone_on.items():
            self._attempts[job].writer.notes.append(f"{self._task}: {_gone_on(steps)}")
        if self._gone_on:
            (first, *more) = (self._attempts[job].cell.name for job in sorted(self._gone_on))
            cells = first if not more else f"{self._task}, {counted(1 + len(more), 'cell')}"
            self._progress.note(f"{cells}: {_gone_on([step for steps in self._gone_on.values() for step in steps])}")

    def _write(self, states: States) -> None:
        try:
            self._check_space(states())
            for job, state in states():
                with suppress(ClaimLost):  # the next commit sees it, and drops the cell
                    self._write_one(job, state)
            # a cell that waits for the others of its pack gets further with them
            note_further(self._together)
        except Exception as error:  # a disk, a number format, the host's memory: the run itself can do without
            if not self._warned:
                self._warned = True
                self._progress.note_once(
                    f"states of lanes under way are not written: {first_line(error)}; a kill would cost these lanes"
                )

    def _check_space(self, states: Iterator[tuple[int, LaneState]]) -> None:
        """OSError if the disk has not twice the room: the results must fit as well."""
        wanted = sum(state.nbytes for _, state in states)
        free = shutil.disk_usage(self._attempts[0].cell.folder).free
        if free < 2 * wanted:
            raise OSError(f"they take {as_bytes(wanted)}, and the disk has {as_bytes(free)} left")

    def _write_one(self, job: int, state: LaneState) -> None:
        from lynx_exp.run.state_file import write_state

        of = self._of(job, state.lane)
        self._attempts[job].writer.keep(self._task, state.lane, lambda file: write_state(file, of, state))

    def _of(self, job: int, lane: int) -> dict[str, str]:
        attempt = self._attempts[job]
        return {
            **attempt.numerics,
            "form": "1",
            "cell": attempt.cell.cell_id,
            "batch plan": attempt.writer.plan[self._task]["digest"],
            "task": self._task,
            "lane": str(lane),
            "policy": repr(attempt.policy),  # with the knob that was set for it
        }


def _gone_on(steps: Sequence[int]) -> str:
    """`steps`: those that each lane had done."""
    lanes = counted(len(steps), "lane")
    return f"{lanes} went on where an earlier attempt had stopped; {counted(sum(steps), 'step')} were not run again"
