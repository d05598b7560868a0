"""The state of studies on disk: which cells their sweeps planned, what exists of them, and which processes are at work.

`lynx-results status` and the progress of a sweep show it. It only reads, and may run beside writers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from lynx_exp.store.claims import holder_of, is_held
from lynx_exp.store.done import DONE, check_sealed, read_done
from lynx_exp.store.file_types import CellStatus, Plan
from lynx_exp.store.files import STATE, file_name
from lynx_exp.store.find import find_cells
from lynx_exp.store.reading import Damaged, Missing, read_value, value_or_empty
from lynx_exp.store.sweeps import SweepCell, damaged_sweeps, latest_sweeps

STATES = ("done", "running", "waiting", "interrupted", "preempted", "lost", "failed", "skipped", "damaged")
"""States of a cell, in the order of output. lost: its process ended without recording a state; damaged: a file differs
from what the store wrote."""
OVER = ("done", "failed", "skipped")
"""States that do not change until the next command."""
ENDED = ("failed", "skipped")
"""States with a recorded reason."""
BAD = ("failed", "lost", "damaged")
"""States for which `status` reports an error."""


@dataclass(frozen=True, kw_only=True)
class CellState:
    """The state of one cell."""

    folder: Path
    name: str
    """The readable name of the cell."""
    state: str
    """One of `STATES`."""
    kind: str | None = None
    """Kind of the error that ended it."""
    message: str | None = None
    """Message of that error, one line."""
    invalid: Sequence[str] = ()
    """Reasons why a finished cell must not be used."""
    attempt: int = 0
    holder: str | None = None
    """The process that works on it."""
    lanes: tuple[int, int] = (0, 0)
    """(committed, total); a total of 0 is not known yet."""
    states: int = 0
    """Lanes under way whose state is kept: the next attempt goes on inside them."""
    requests: tuple[int, int] = (0, 0)
    """(committed, total)."""
    fresh: int = 0
    """Requests committed since the sweep began."""
    corrupt: Sequence[str] = ()
    """Names of damaged files that were set aside."""


@dataclass(frozen=True, kw_only=True)
class StudyState:
    """The state of one study at one time."""

    path: Path
    started: datetime | None
    """Start of the latest sweep."""
    now: datetime
    cells: Sequence[CellState]
    """The cells that the latest sweeps planned; all cells, if no sweep is recorded."""
    others: int
    """Number of further cells in the folder."""
    damaged: Sequence[str] = ()
    """Records of sweeps that cannot be read, each with the reason; the cells that they planned are unknown."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells in each state."""
        found = Counter(cell.state for cell in self.cells)
        return {state: found[state] for state in STATES}

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed cells by kind of error."""
        return dict(Counter(cell.kind or "unknown" for cell in self.cells if cell.state == "failed"))

    @property
    def requests(self) -> tuple[int, int]:
        """(committed, total) requests."""
        return sum(cell.requests[0] for cell in self.cells), sum(cell.requests[1] for cell in self.cells)

    @property
    def rate(self) -> float | None:
        """Requests committed per second since the sweep began; None if none was, or if no process is at work."""
        fresh = sum(cell.fresh for cell in self.cells)
        if self.started is None or not fresh or not any(cell.state == "running" for cell in self.cells):
            return None
        seconds = (self.now - self.started).total_seconds()
        return fresh / seconds if seconds > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Estimated seconds until all requests are committed; None without a rate."""
        open_ = [cell.requests for cell in self.cells if cell.state not in OVER]
        return None if self.rate is None else sum(total - done for done, total in open_) / self.rate

    @property
    def is_over(self) -> bool:
        return all(cell.state in OVER for cell in self.cells)

    @property
    def is_bad(self) -> bool:
        return bool(self.damaged) or any(cell.state in BAD or cell.invalid for cell in self.cells)


@dataclass(kw_only=True)
class Survey:
    """Reads the state of all studies below `root`, repeatedly if needed. Finished cells are read only once."""

    root: Path
    _done: dict[Path, tuple[int, CellState]] = field(default_factory=dict)
    """For each finished cell, the modification time of DONE (ns) and its state."""

    def read_states(self, now: datetime | None = None) -> list[StudyState]:
        """Read the states now.

        Raises:
            ValueError: As for `find_cells`.
        """
        now = now or datetime.now(UTC)
        cells, studies = find_cells(self.root)
        alone = cells == [self.root]
        found = []
        for study in studies:
            sweeps = [] if alone else latest_sweeps(study)
            planned = {study / cell.folder: cell for sweep in sweeps for cell in sweep.cells}
            there = [cell for cell in cells if cell.parent == study]
            started = _time(sweeps[-1].started) if sweeps else None
            # cells of earlier sweeps are counted, not shown: their lack or failure is no news of this one
            looked_at = list(planned) or there
            states = [self._read_state(folder, planned.get(folder), started) for folder in looked_at]
            others = len(set(there) - set(looked_at))
            damaged = () if alone else damaged_sweeps(study)
            found.append(StudyState(path=study, started=started, now=now, cells=states, others=others, damaged=damaged))
        return found

    def _read_state(self, folder: Path, planned: SweepCell | None, started: datetime | None) -> CellState:
        try:
            # `status` looks again every few seconds: finished cells are read once
            age = (folder / "DONE").stat().st_mtime_ns
        except OSError:
            return _state_of(folder, planned, started)
        # by DONE's age, not by its presence: a cell that was begun again and finished is another
        if folder not in self._done or self._done[folder][0] != age:
            self._done[folder] = age, _state_of(folder, planned, started)
        return self._done[folder][1]


def _state_of(folder: Path, planned: SweepCell | None, started: datetime | None) -> CellState:
    parts: dict[str, dict[str, Any]] = {"status.json": {}, "plan.json": {}}
    done, damage = False, None
    try:
        if (folder / DONE).exists():
            check_sealed(folder, read_done(folder))
            done = True
    except Damaged as error:
        damage = str(error)
    for name in parts:
        try:
            parts[name] = read_value(folder / name)
        except Missing:
            pass
        except Damaged as error:
            damage = damage or str(error)
    status, plan = cast(CellStatus, parts["status.json"]), cast(Plan, parts["plan.json"])
    # status.json says what the last writer knew; only its claim shows whether it still lives
    held = not done and is_held(folder)
    ended = status.get("error") or {}
    known = str(status.get("state"))
    state = "done" if done else "running" if held else "waiting" if not status else known
    if state not in STATES or (state in ("done", "running") and not (done or held)):
        state = "lost"
    # a file that is being replaced may look damaged for a moment
    if damage is not None and not held:
        done, state = False, "damaged"
    sizes = {(stream, at): len(lane) for stream, at, lane in _lanes(plan)}
    total = (len(sizes), sum(sizes.values()) or (planned.requests if planned is not None else 0))
    # one listing: on a file server each look at a file costs a round trip
    files = _files(folder / "lanes")
    committed = {key: path for path in files if path.suffix == ".json" and (key := _key(path)) in sizes}
    if done:
        lanes, requests = (total[0], total[0]), (total[1], total[1])
        # what earlier runs had done says nothing about the rate of this one
        fresh = total[1] - _earlier(status, total, started) if _since(status.get("finished"), started) else 0
    else:
        lanes = len(committed), total[0]
        requests = sum(sizes[key] for key in committed), total[1]
        fresh = sum(sizes[key] for key, path in committed.items() if _is_new(path, started))
    return CellState(
        folder=folder,
        name=planned.name if planned is not None else folder.name,
        state=state,
        kind=(ended.get("kind") or ended.get("class")) if state in ENDED else None,
        message=damage if state == "damaged" else _line(ended.get("message")) if state in ENDED else None,
        invalid=tuple(status.get("invalid") or ()) if done else (),
        attempt=int(status.get("attempt") or 0),
        holder=str(holder_of(folder) or "a process that does not say which") if held else None,
        lanes=lanes,
        states=0 if done else sum(path.suffix == STATE and _key(path) in sizes for path in files),
        requests=requests,
        fresh=fresh,
        corrupt=sorted(path.name for path in files if path.suffix == ".corrupt"),
    )


def requests_kept(folder: Path) -> int:
    """Requests that the journal of a cell holds."""
    sizes = {(stream, at): len(lane) for stream, at, lane in _lanes(cast(Plan, value_or_empty(folder / "plan.json")))}
    return sum(sizes.get(_key(path) or ("", -1), 0) for path in _files(folder / "lanes") if path.suffix == ".json")


def _lanes(plan: Plan) -> Iterator[tuple[str, int, Sequence[int]]]:
    """(subtask as its files are named, lane, requests)"""
    for stream, part in plan.items():
        for at, lane in enumerate(part["lanes"]):
            yield file_name(stream), at, lane


def _files(folder: Path) -> list[Path]:
    """None where the folder is gone, or just going."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _key(path: Path) -> tuple[str, int] | None:
    stream, _, number = path.stem.rpartition("-")
    return (stream, int(number)) if number.isdecimal() else None


def _earlier(status: CellStatus, total: tuple[int, int], started: datetime | None) -> int:
    """Requests of a finished cell that attempts before the sweep's start had committed, lanes taken as equal."""
    before = [entry for entry in status.get("attempts") or () if not _since(entry.get("started"), started)]
    lanes = int(before[-1].get("lanes") or 0) if before else 0
    return round(total[1] * lanes / total[0]) if total[0] else 0


def _since(text: object, started: datetime | None) -> bool:
    time = _time(text)
    return started is not None and time is not None and time >= started


def _is_new(path: Path, started: datetime | None) -> bool:
    try:
        return started is not None and path.stat().st_mtime >= started.timestamp()
    except OSError:  # just folded into the tables
        return False


def _time(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _line(text: object) -> str | None:
    lines = str(text or "").strip().splitlines()
    return lines[0] if lines else None
