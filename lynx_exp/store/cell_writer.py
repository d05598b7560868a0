"""The write side of one cell's folder: journal lane by lane, fold into tables, DONE last. Every change goes through the
claim (`Hold`): a writer that has lost it changes nothing, neither the files of another attempt nor a DONE cell's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import BinaryIO, Literal

import pyarrow as pa

from lynx_exp.store.claims import CLAIM, Claims, is_held, sweep_drafts
from lynx_exp.store.done import is_done, seal
from lynx_exp.store.faults import Fault
from lynx_exp.store.file_types import PlanEntry
from lynx_exp.store.files import STATE, file_name
from lynx_exp.store.hold import ClaimLost, Hold
from lynx_exp.store.reading import value_or_empty
from lynx_exp.store.row_types import FidelityRow, ResponseRow, SampleRow, StepRow, TimingRow
from lynx_exp.store.tables import (
    FIDELITY,
    PREFILL,
    RESPONSES,
    SAMPLES,
    STEPS,
    TIMING,
    LaneRecord,
    lane_bytes,
    read_lane,
)

FINISHED_FILES = (
    "cell.json",
    "config.yaml",
    "provenance.json",
    "plan.json",
    "responses.parquet",
    "steps.parquet",
    "samples.parquet",
    "metrics.json",
    "status.json",
)
MOST_ATTEMPTS = 20
"""That a status remembers."""
TIMING_FILES = ("timing.parquet", "timing.json")
NOT_TIMED = "not timed:"
"""In a note of a cell whose run had no place for a window, before the reason: it has no timing files."""


@dataclass(kw_only=True)
class CellWriter:
    """One attempt at a cell. `open` begins it; exactly one of `finish`, `fail`, `interrupt` ends it. All of them, and
    `commit`, raise ClaimLost once another process has taken the cell over."""

    hold: Hold
    plan: Mapping[str, PlanEntry]
    """A subtask: batch_size, seed, digest, lanes."""
    attempt: int
    started: str
    lanes: dict[str, dict[int, LaneRecord]] = field(default_factory=dict)
    """Committed lanes of a subtask."""
    notes: list[str] = field(default_factory=list)
    """What its reader should know of how it ran, for the status."""
    steps_ran: Mapping[str, object] | None = None
    """How its decode steps ran, for the status; None: nothing to tell."""
    attempts: list[object] = field(default_factory=list)
    """Earlier ones, the latest last."""
    failures: int = 0
    """In a row, none of which committed a lane more."""
    together: int = 1
    """Cells that run side by side with this one, and share its time."""
    lanes_before: int = 0
    """Lanes that were committed when this attempt began."""
    kept: int = 0
    """Times that this attempt has kept states of lanes under way."""
    _clock: float = field(default_factory=monotonic)

    @classmethod
    def open(
        cls,
        hold: Hold,
        *,
        info: Mapping[str, object],
        config_yaml: str,
        provenance: Mapping[str, object],
        plan: Mapping[str, PlanEntry],
    ) -> CellWriter:
        """Begin, or continue with the lanes that an earlier attempt committed; damaged ones become `*.corrupt`. The
        cell is claimed by now: an attempt that still counts as running was lost."""
        folder = hold.folder
        hold.make_folder(folder / "lanes")
        # first: from here on the folder must not look finished
        hold.remove(folder / "DONE")
        _clean(hold)
        before = value_or_empty(folder / "status.json")
        writer = cls(hold=hold, plan=plan, attempt=_number(before.get("attempt")) + 1, started=_now())
        hold.write_text(folder / "config.yaml", config_yaml)
        hold.write_json(folder / "provenance.json", provenance)
        hold.write_json(folder / "plan.json", plan)
        writer.lanes = {subtask: writer._committed(subtask) for subtask in plan}
        writer._take_over(before)
        writer._status("running")
        hold.write_json(folder / "cell.json", info)  # after the rest: a folder with cell.json is a readable cell
        return writer

    @property
    def folder(self) -> Path:
        return self.hold.folder

    def _take_over(self, before: Mapping[str, object]) -> None:
        """Count the attempt before this one, and its failure if it was one."""
        self.lanes_before = self._count()
        if not before:
            return
        state, error = str(before.get("state")), before.get("error")
        error = error if isinstance(error, Mapping) else {}
        self.failures = _number(before.get("failures"))
        # nobody said that the attempt ended: it was killed; only with no new lane since it is a failure of the cell
        if state == "running":
            state, error = "lost", {"kind": "lost"}
            further = self.lanes_before > _number(before.get("lanes")) or _number(before.get("kept")) > 0
            self.failures = 0 if further else self.failures + 1
        entry = {"attempt": before.get("attempt"), "state": state, "kind": error.get("kind")}
        entry |= {name: before.get(name) for name in ("started", "seconds", "lanes")}
        earlier = before.get("attempts")
        self.attempts = [*(earlier if isinstance(earlier, list) else []), entry][-MOST_ATTEMPTS:]

    def _count(self) -> int:
        return sum(map(len, self.lanes.values()))

    def _lane_path(self, subtask: str, lane: int) -> Path:
        return self.folder / "lanes" / f"{file_name(subtask)}-{lane:05d}.json"

    def _committed(self, subtask: str) -> dict[int, LaneRecord]:
        found = {}
        # by the plan, not by what lies in the folder: a lane of another plan is no lane of this cell
        for lane, requests in enumerate(self.plan[subtask]["lanes"]):
            path = self._lane_path(subtask, lane)
            if path.exists():
                try:
                    found[lane] = read_lane(path, subtask, lane, requests, self.plan[subtask]["digest"])
                except ValueError as error:
                    # kept for whoever wants to know what happened, under a name that no reader takes for a lane
                    self.hold.move(path, path.with_suffix(".corrupt"))
                    self.notes.append(f"{error}; set aside, and the lane run again")
        return found

    def missing(self, subtask: str) -> list[int]:
        """Lanes still to run."""
        return [lane for lane in range(len(self.plan[subtask]["lanes"])) if lane not in self.lanes[subtask]]

    def commit(self, lane: LaneRecord) -> None:
        """Make one lane durable."""
        content = lane_bytes(lane, self.plan[lane.subtask]["digest"])
        self.hold.write(self._lane_path(lane.subtask, lane.lane), lambda file: file.write(content))
        # only now: a lane whose write failed is still missing, and is run again
        self.lanes[lane.subtask][lane.lane] = lane
        self.forget(lane.subtask, lane.lane)

    def state_path(self, subtask: str, lane: int) -> Path:
        """Where the state of a lane under way is, if any is."""
        return self._lane_path(subtask, lane).with_suffix(STATE)

    def keep(self, subtask: str, lane: int, write: Callable[[BinaryIO], object]) -> None:
        """`write(file)` the state of a lane under way, in place of an earlier one."""
        self.hold.write(self.state_path(subtask, lane), write)

    def forget(self, subtask: str, lane: int) -> None:
        """Nothing is kept of the lane any more."""
        path = self.state_path(subtask, lane)
        if path.exists():
            with suppress(OSError):  # what is left goes with the journal
                self.hold.remove(path)

    def note_kept(self) -> None:
        """All states have been written once more, or a cell that this one waits for got a lane further: should the
        attempt be killed now, it has made progress."""
        self.kept += 1
        self._status("running")

    def responses(self, subtask: str) -> list[ResponseRow]:
        """Rows of all committed lanes, in request order, without fillers."""
        return [row for row in self._rows(subtask) if not row["filler"]]

    def _rows(self, subtask: str) -> list[ResponseRow]:
        """Fillers last, by lane."""
        rows = [row for lane in self.lanes[subtask].values() for row in lane.rows]
        return sorted(rows, key=lambda row: (row["filler"], row["lane"] if row["filler"] else 0, row["request"]))

    def steps(self) -> Iterable[StepRow]:
        for lanes in self.lanes.values():
            for _, lane in sorted(lanes.items()):
                yield from lane.step_rows()

    def finish(
        self,
        *,
        samples: Sequence[SampleRow],
        metrics: Mapping[str, object],
        timing_rows: Sequence[TimingRow] | None = None,
        timing_info: Mapping[str, object] | None = None,
        fidelity_rows: Sequence[FidelityRow] | None = None,
        invalid: Sequence[str] = (),
        more: Mapping[str, pa.Table] | None = None,
    ) -> None:
        """Fold the journal into the tables, write the rest, then DONE, then drop the journal. `invalid`: why nobody
        should trust what the cell gives; `more`: further tables by name, without the ending."""
        folder, hold = self.folder, self.hold
        # by plan order, so that bytes do not depend on which lane was done first
        responses = [row for subtask in self.plan for row in self._rows(subtask)]
        hold.write_parquet(folder / "responses.parquet", pa.Table.from_pylist(responses, schema=RESPONSES))
        hold.write_parquet(folder / "steps.parquet", pa.Table.from_pylist(list(self.steps()), schema=STEPS))
        hold.write_parquet(folder / "samples.parquet", pa.Table.from_pylist([dict(s) for s in samples], schema=SAMPLES))
        hold.write_json(folder / "metrics.json", metrics)
        files: tuple[str, ...] = FINISHED_FILES
        if timing_rows is not None:
            hold.write_parquet(
                folder / "timing.parquet", pa.Table.from_pylist([dict(r) for r in timing_rows], schema=TIMING)
            )
            hold.write_json(folder / "timing.json", {**(timing_info or {}), "attempt": self.attempt})
            files += TIMING_FILES
        if fidelity_rows is not None:
            table = pa.Table.from_pylist([dict(r) for r in fidelity_rows], schema=FIDELITY)
            hold.write_parquet(folder / "fidelity.parquet", table)
            files += ("fidelity.parquet",)
        # a policy that lets prompts alone leaves no such rows, and then there is no empty table either
        prompts = [
            row for lanes in self.lanes.values() for _, lane in sorted(lanes.items()) for row in lane.prefill_rows()
        ]
        tables = dict(more or {}) | ({"prefill": pa.Table.from_pylist(prompts, schema=PREFILL)} if prompts else {})
        for name, table in tables.items():
            hold.write_parquet(folder / f"{name}.parquet", table)
            files += (f"{name}.parquet",)
        # after all other files, before DONE, which holds the hash of this one too
        self._status("done", invalid=invalid)
        hold.write_json(folder / "DONE", seal(folder, files))
        with suppress(OSError, ClaimLost):  # the cell is done; who sees the rest next takes it away (`tidy`)
            hold.remove(folder / "lanes")
            hold.remove(folder / "error.txt")

    def fail(self, fault: Fault, trace: str) -> None:
        """Record what ended the attempt; the next run of the cell continues from the committed lanes."""
        if self._is_done():
            return
        # an attempt that committed a lane made progress: only failures that change nothing add up to `max_failures`
        self.failures = self.failures + 1 if self._count() <= self.lanes_before and not self.kept else 1
        # before the status: who reads `failed` finds the trace
        self.hold.write_text(self.folder / "error.txt", trace)
        self._status("failed", fault.json())

    def interrupt(self, state: Literal["interrupted", "preempted"] = "interrupted") -> None:
        if not self._is_done():
            self._status(state)

    def _is_done(self) -> bool:
        """What comes right behind DONE, a signal for one, changes no finished cell."""
        return (self.folder / "DONE").exists()

    def _status(self, state: str, error: Mapping[str, object] | None = None, invalid: Sequence[str] = ()) -> None:
        over = state != "running"
        status = {
            "state": state,
            "error": error,
            "invalid": list(invalid),
            "notes": self.notes,
            "attempt": self.attempt,
            "attempts": self.attempts,
            "failures": 0 if state == "done" else self.failures,
            "lanes": self._count(),
            "kept": self.kept,
            "together": self.together,
            "started": self.started,
            "finished": _now() if over else None,
            "seconds": round(monotonic() - self._clock, 3) if over else None,
        }
        if self.steps_ran is not None:
            status["steps"] = self.steps_ran
        self.hold.write_json(self.folder / "status.json", status)


def tidy(folder: Path, claims: Claims) -> None:
    """Take away what a kill right behind DONE leaves of a finished cell: its claim, its journal, half-written files. A
    folder that may only be read keeps them."""
    left = [folder / CLAIM, folder / "error.txt", folder / "lanes", *folder.glob(".*.tmp")]
    # looked at before it is claimed: of a thousand finished cells hardly one has anything left
    if not any(path.exists() for path in left) or is_held(folder):
        return
    with suppress(OSError, ClaimLost):
        if claims.take(folder):
            try:
                hold = claims.hold(folder)
                _clean(hold)
                if is_done(folder):  # anew: somebody may have begun the cell again meanwhile
                    hold.remove(folder / "lanes")
                    hold.remove(folder / "error.txt")
            finally:
                claims.give_back(folder)


def _clean(hold: Hold) -> None:
    """Take away drafts of killed writes; beside the claim, they are those of older versions."""
    sweep_drafts(hold.folder)
    for place in (hold.folder, hold.folder / "lanes"):
        for path in place.glob(".*.tmp"):
            if not path.name.startswith(f".{CLAIM}."):
                hold.remove(path)


def record_failure(
    hold: Hold, info: Mapping[str, object], config_yaml: str, error: Mapping[str, object], state: str = "failed"
) -> None:
    """The status of a cell that could not even begin, or was not tried (`skipped`), on top of what earlier attempts
    left. Nothing to a cell that is done."""
    folder = hold.folder
    if is_done(folder):
        return
    before = value_or_empty(folder / "status.json")
    hold.write_text(folder / "config.yaml", config_yaml)
    now = _now()
    status = before | {
        "state": state,
        "error": error,
        "notes": [],
        "attempt": _number(before.get("attempt")) + 1,
        "failures": _number(before.get("failures")) + (state == "failed"),
        "started": now,
        "finished": now,
        "seconds": 0.0,
    }
    hold.write_json(folder / "status.json", status)
    hold.write_json(folder / "cell.json", info)


def _number(value: object) -> int:
    """A count of a status; 0 for what is none."""
    return value if type(value) is int else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
