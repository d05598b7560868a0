"""One progress for a whole run: cells done, the current pack (rows, lanes, tokens a second), time left. Or plain
lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from lynx_exp.wording import counted

if TYPE_CHECKING:
    from lynx_exp.run.planned_cell import Cell
    from lynx_exp.run.threads import ThreadChooser

Stage = tuple[str, int]
"""(subtask, `measure`, `match` or `fidelity`; batch size): work whose units cost about the same."""

_OTHER_UNITS = ("measure", "match", "fidelity")
"""Stages whose unit is not a request."""


class Estimate:
    """Seconds left, from what the same work, else the most similar work, has cost so far in this run."""

    def __init__(self) -> None:
        self._seconds: dict[Stage, float] = defaultdict(float)
        self._units: dict[Stage, float] = defaultdict(float)

    def add(self, stage: Stage, seconds: float, units: float) -> None:
        self._seconds[stage] += seconds
        self._units[stage] += units

    def _rate(self, stage: Stage) -> float | None:
        """Seconds a unit: of the stage, of its name at any batch size, of everything but measuring."""
        # the first that knows anything: stages differ by batch size less than by kind, and timing goes by windows
        for like in (
            lambda other: other == stage,
            lambda other: other[0] == stage[0],
            lambda other: (other[0] in _OTHER_UNITS) == (stage[0] in _OTHER_UNITS),
        ):
            units = sum(self._units[other] for other in self._units if like(other))
            if units:
                return sum(self._seconds[other] for other in self._units if like(other)) / units
        return None

    def left(self, work: Sequence[tuple[Stage, float]]) -> float | None:
        """Seconds for `work`; None until something is known."""
        rates = [(self._rate(stage), units) for stage, units in work]
        if not any(rate for rate, _ in rates):
            return None
        # work of which nothing is known counts as none: too little time is shown, until its first unit is done
        return sum((rate or 0.0) * units for rate, units in rates)


def work_of(cell: Cell) -> dict[Stage, float]:
    """Units of work of one cell: requests of each subtask, and one for each other stage."""
    batch = cell.config.batch_size
    work: dict[Stage, float] = {(task.name, batch): float(len(task.requests)) for task in cell.tasks}
    if cell.config.measure.latency:
        work["measure", batch] = 1.0
    if cell.policy is not None and cell.config.match_active is not None:
        work["match", batch] = 1.0
    if cell.policy is not None and cell.config.fidelity:
        work["fidelity", batch] = 1.0
    return work


def clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class _Description(TextColumn):
    """What runs: of a line that is too long, all that is cut."""

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class Lanes:
    """Lanes of one pack, for its live line."""

    def __init__(self, finished: int, more: int, draw: Callable[[], None]) -> None:
        self.total, self.finished, self._draw = finished + more, finished, draw

    def done(self) -> None:
        self.finished += 1
        self._draw()


class Progress:
    """Use as a context. Per pack: `begin`, then `advance`, `step` and `tokens` as they come, `end` for each cell."""

    def __init__(self, cells: Sequence[Cell], console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._pending = {cell.folder: work_of(cell) for cell in cells}
        self._total = len(cells)
        self._done = 0
        self._estimate = Estimate()
        self._started = self._stage_started = monotonic()
        self._tokens = self._rows = 0
        self._noted: set[str] = set()
        self._lanes: Lanes | None = None
        self.threads: ThreadChooser | None = None
        """Looks at the machine between steps; None leaves the number of threads alone."""
        self._pack: frozenset[Path] = frozenset()
        """Folders of the cells at work; none before the first pack, and none of those that others run."""
        self._what = ""
        self._drawn = 0.0
        self._bar = RichProgress(
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("cells"),
            BarColumn(bar_width=16, table_column=Column(no_wrap=True)),
            _Description("{task.fields[what]}", markup=False, table_column=Column(no_wrap=False)),
            TextColumn("{task.fields[rows]}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("ETA {task.fields[eta]}"),
            console=console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=self._total, what="", rows="", rate="", eta="?")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, pack: Sequence[Cell]) -> None:
        self._started = self._stage_started = monotonic()
        self._tokens = self._rows = 0
        self._lanes = None
        self._what = pack[0].name if len(pack) == 1 else f"pack of {len(pack)}: {pack[0].config.task.name}"
        self._pack = frozenset(cell.folder for cell in pack)
        self._draw()

    def lanes(self, more: int) -> Lanes:
        """The pack decodes so many lanes now, after those that it has already done."""
        self._lanes = Lanes(self._lanes.finished if self._lanes is not None else 0, more, self._draw)
        return self._lanes

    def advance(self, cell: Cell, stage: Stage, units: float, *, run: bool = True) -> None:
        """`units` of a stage are done; `run=False` if they were found done (an earlier attempt's lanes)."""
        now = monotonic()
        if run:
            self._estimate.add(stage, now - self._stage_started, units)
        self._stage_started = now
        current = self._pending[cell.folder]
        current[stage] = max(0.0, current[stage] - units)
        self._draw()

    def note(self, text: str) -> None:
        """Something about what runs that its user should know."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def note_once(self, text: str) -> None:
        """What holds for several cells."""
        if text not in self._noted:
            self._noted.add(text)
            self.note(text)

    def tokens(self, count: int) -> None:
        self.step(count, 0)

    def step(self, tokens: int, rows: int) -> None:
        """A step gave `tokens`; `rows` are live."""
        self._tokens += tokens
        self._rows = rows
        if self.threads is not None:
            self.threads.watch()
        self._draw_soon()

    def timing(self) -> AbstractContextManager[None]:
        """Inside, steps are timed: the number of threads stays."""
        return nullcontext() if self.threads is None else self.threads.fixed()

    def _draw_soon(self) -> None:
        """Not more often than anybody can see."""
        if monotonic() - self._drawn > 0.2:
            self._draw()

    def _draw(self) -> None:
        if not self._live:
            return
        self._drawn = monotonic()
        rows = ""
        if self._lanes is not None and self._rows:
            rows = f"{self._rows} rows, {self._lanes.finished}/{self._lanes.total} lanes"
        rate, eta = self._speed(), clock(self.eta())
        self._bar.update(self._task, completed=self._done, what=self._what, rows=rows, rate=rate, eta=eta)

    def _speed(self) -> str:
        seconds = monotonic() - self._started
        return f"{self._tokens / seconds:.0f} tok/s" if self._tokens and seconds > 0 else ""

    def eta(self) -> float | None:
        left: dict[Stage, float] = defaultdict(float)
        for work in self._pending.values():
            for stage, units in work.items():
                left[stage] += units
        return self._estimate.left(list(left.items())) if left else 0.0

    def packed(self) -> None:
        """The lanes of a pack of several cells are all decoded; says so in one line."""
        if len(self._pack) > 1 and self._lanes is not None and self._lanes.total:
            speed = f" ({self._speed()})" if self._speed() else ""
            seconds = monotonic() - self._started
            done = f"{counted(self._lanes.finished, 'lane')}, {counted(self._tokens, 'token')}"
            self.note(f"{self._what}: {done} in {seconds:.1f} s{speed}")
        self._lanes = None

    def end(self, cell: Cell, state: str, headline: str = "") -> None:
        """A cell is over; says so, and what it found, in one line."""
        self._pending.pop(cell.folder, None)
        self._done += 1
        left = f", ETA {clock(self.eta())}" if self._pending else ""
        alone = ""
        if self._pack == {cell.folder}:
            speed = f", {self._speed()}" if self._speed() else ""
            alone = f" in {monotonic() - self._started:.1f} s{speed}"
        width, outcome = len(str(self._total)), f", {headline}" if headline else ""
        self.note(f"{self._done:>{width}}/{self._total} {cell.name}: {state}{alone}{outcome}{left}")
        self._draw()
