"""Scores of finished cells anew, from the responses that they stored: no model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from lynx_exp.run.cell_rows import responses_of, sample_rows
from lynx_exp.run.load_tasks import LoadTask, sandbox_of
from lynx_exp.run.metrics import metric_entry
from lynx_exp.run.replay.finished_cells import StoredCell, open_stored
from lynx_exp.store.claims import Claims, holder_of
from lynx_exp.store.done import DONE, is_done, read_done, seal
from lynx_exp.store.file_types import MetricEntry
from lynx_exp.store.files import sha256_of
from lynx_exp.store.hold import ClaimLost, Hold
from lynx_exp.store.read import CellRecord
from lynx_exp.store.row_types import SampleRow
from lynx_exp.store.tables import SAMPLES
from lynx_exp.tasks.load_task import load_task

NOTE = "rescored"
WRITTEN = ("samples.parquet", "metrics.json", "status.json")
"""Files that are written anew: a kill may leave them other than DONE says, until the next time."""
NAMED = ("subtask", "metric", "filter")
"""What tells a metric of a cell from its others."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A metric that is not what it was; None: it was, or is, no number."""

    subtask: str
    metric: str
    filter: str
    before: float | None
    after: float | None

    def __str__(self) -> str:
        shown = ["none" if value is None else f"{value:.6g}" for value in (self.before, self.after)]
        return f"{self.subtask} {self.metric},{self.filter}: {' -> '.join(shown)}"


@dataclass(frozen=True, kw_only=True)
class Rescored:
    changes: list[Change]
    samples: int
    """Documents of which a score, a filtered response, a verdict or its sandbox is another."""

    def __str__(self) -> str:
        if self.changes:
            return "; ".join(map(str, self.changes))
        if self.samples:
            return f"same metrics; of {self.samples} documents a filtered response, a verdict or its sandbox changed"
        return "unchanged"


def rescore(
    record: CellRecord, *, sandbox: str | None = None, confirm_unsafe_code: bool = False, load: LoadTask = load_task
) -> Rescored:
    """Score the cell's stored responses and write what has changed. `sandbox`: in place of the one it was run with.

    ValueError if its tasks are no longer what it was asked, or its files not those that it wrote.
    """
    found, samples, metrics = score_anew(record, sandbox=sandbox, confirm_unsafe_code=confirm_unsafe_code, load=load)
    same = not found.samples and record.metrics["metrics"] == metrics
    if not same or not _intact(record.path):
        _write(record, samples, metrics, note=not same)
    return found


def score_anew(
    record: CellRecord, *, sandbox: str | None = None, confirm_unsafe_code: bool = False, load: LoadTask = load_task
) -> tuple[Rescored, pa.Table, list[MetricEntry]]:
    """What has changed, the samples and the metrics, as `rescore` would write them."""
    cell = open_stored(record, sandbox=sandbox, confirm_unsafe_code=confirm_unsafe_code, load=load)
    samples, metrics = _scored(cell)
    differing = _differing(record.samples().to_pylist(), samples.to_pylist())
    return Rescored(changes=_changes(record.metrics["metrics"], metrics), samples=differing), samples, metrics


def _scored(cell: StoredCell) -> tuple[pa.Table, list[MetricEntry]]:
    """(samples table, metrics as in metrics.json)"""
    samples, metrics = list[SampleRow](), list[MetricEntry]()
    for task in cell.tasks:
        rows = cell.responses[task.name]
        scores = task.score(responses_of(task, rows), sandbox=sandbox_of(cell.config) if task.runs_code else None)
        samples += sample_rows(task, scores, rows)
        metrics += map(metric_entry, scores.metrics)
    return pa.Table.from_pylist(samples, schema=SAMPLES), metrics


def _write(record: CellRecord, samples: pa.Table, metrics: list[MetricEntry], *, note: bool) -> None:
    """Under a claim, each file in one step, DONE last and never away: without it the launcher would run the cell again.
    A kill in between leaves a DONE with hashes of the files before, which the next `rescore` sees and puts right."""
    folder, claims = record.path, Claims()
    try:
        if not claims.take(folder):
            raise ValueError(f"{folder}: {holder_of(folder) or 'another process'} is at work on it; try again later")
        _write_claimed(claims.hold(folder), record, samples, metrics, note=note)
    except ClaimLost as error:
        raise ValueError(f"{folder}: another process has taken it over; try again later") from error
    finally:
        claims.close()


def _write_claimed(
    hold: Hold, record: CellRecord, samples: pa.Table, metrics: list[MetricEntry], *, note: bool
) -> None:
    folder = hold.folder
    if not is_done(folder):
        raise ValueError(f"{folder}: is being run again; try again when it is done")
    if note:  # first: once the scores are written, nothing shows any more that they have changed
        notes = [text for text in record.status.get("notes", []) if not text.startswith(NOTE)]
        today = datetime.now(UTC).isoformat(timespec="seconds")
        hold.write_json(folder / "status.json", record.status | {"notes": [*notes, f"{NOTE} {today}"]})
    hold.write_parquet(folder / "samples.parquet", samples)
    hold.write_json(folder / "metrics.json", record.metrics | {"metrics": metrics})
    done = read_done(folder)
    hold.write_json(folder / DONE, done | seal(folder, done["files"]))


def _intact(folder: Path) -> bool:
    """Whether the files that rescoring writes are those that DONE names."""
    files = read_done(folder)["files"]
    return all(files[name] == sha256_of(folder / name) for name in WRITTEN if name in files)  # older ones lack the last


def _changes(before: Sequence[MetricEntry], after: Sequence[MetricEntry]) -> list[Change]:
    old, new = (
        {(row["subtask"], row["metric"], row["filter"]): row["value"] for row in rows} for rows in (before, after)
    )
    return [
        Change(subtask=key[0], metric=key[1], filter=key[2], before=old.get(key), after=new.get(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _differing(before: Sequence[Mapping[str, object]], after: Sequence[Mapping[str, object]]) -> int:
    """Rows with a column that is another; NaN is NaN, and a column that older cells lack counts as empty."""
    names = SAMPLES.names
    paired = zip(before, after, strict=False)
    other = sum(repr([old.get(name) for name in names]) != repr([new[name] for name in names]) for old, new in paired)
    return other + abs(len(before) - len(after))
