"""Runs a pack: cells of one model that share forward passes on a loaded engine.

It stands between `prepare_cells`, which groups the cells, and the store, which holds their results. The lanes of all
cells decode side by side, and each is committed to its own cell when it completes. Latency, fidelity, scores and
metrics follow, cell by cell, until DONE is written.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from lynx_exp.run.attempt import Attempt, Encoded, note_further
from lynx_exp.run.batch_plan import drained, plan_json, plan_of
from lynx_exp.run.cell_rows import lane_record, responses_of, sample_rows
from lynx_exp.run.encode import encode_requests
from lynx_exp.run.interrupt import Preempted, check, check_wrapped
from lynx_exp.run.invalid_results import invalid_reasons
from lynx_exp.run.kernel_notes import record_execution, show_slow_steps
from lynx_exp.run.lane_checkpoints import kept_lanes
from lynx_exp.run.load_tasks import data_digests, revisions, sandbox_of
from lynx_exp.run.metrics import cell_metrics, drained_note
from lynx_exp.run.pack_fidelity import groups_for_fidelity, measure_fidelity
from lynx_exp.run.planned_cell import Cell, Task
from lynx_exp.run.run_progress import Progress
from lynx_exp.run.time_cell import measure_cell
from lynx_exp.run.vanilla_references import References
from lynx_exp.store.cell_writer import CellWriter, record_failure
from lynx_exp.store.environment import bits_of
from lynx_exp.store.faults import CannotStore, cannot_store, fault_of
from lynx_exp.store.hold import ClaimLost, Hold
from lynx_exp.store.identity import code_digest
from lynx_exp.store.provenance import provenance, scrub
from lynx_exp.store.tables import BREAKDOWN, TOKENS, LaneRecord
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    from lynx_exp.engine import LaneEngine, Scoring
    from lynx_exp.tasks import Scores

_NEAR = 0.1
"""Relative distance from the requested number of active experts above which a line tells the user."""

Failed = Callable[[Cell, Exception], None]
"""Called when an exception has ended a cell."""
HoldOf = Callable[[Path], Hold]
"""The claim that this process holds on a cell's folder."""


class Pack:
    """Cells that differ only in policy and batch size, on one engine. `run` yields each cell when it is complete."""

    def __init__(
        self,
        engine: LaneEngine,
        progress: Progress,
        references: References,
        failed: Failed,
        hold_of: HoldOf,
    ) -> None:
        """Prepare to run cells on an engine.

        Args:
            engine: Has the cells' model loaded.
            progress: Shows progress and notes to the user.
            references: Vanilla responses that fidelity and `match_active` need, shared between packs.
            failed: Called with a cell that an exception has ended; the other cells continue.
            hold_of: Gives the claim on a cell's folder, through which everything is written. A cell whose claim is
                lost belongs to another process; it is dropped, and `failed` is not called.
        """
        self._engine, self._progress, self._references, self._failed = engine, progress, references, failed
        self._hold_of = hold_of
        self._open: list[Attempt] = []
        self._further = False  # no lane of the pack has been committed
        show_slow_steps(engine, progress)

    def run(self, cells: Sequence[Cell]) -> Iterator[Cell]:
        """Run whatever the cells still lack.

        Args:
            cells: Cells that this process has claimed, with the same tasks.

        Yields:
            Each cell when it is complete. One that fails goes to `failed` instead.

        Raises:
            KeyboardInterrupt: The user or a signal stopped the run; committed lanes stay for the next run.
            CannotStore: The disk accepts no more data, so that the other cells would fail as well.
        """
        try:
            encoded: Encoded = {}
            for cell in cells:
                self._begin(cell, encoded)
            # not before all have begun: the wall time is shared by the cells that really run together
            for attempt in self._open:
                attempt.writer.together = len(self._open)
            # task by task and not cell by cell: all cells have the same tasks (`pack_groups`) and share the passes
            for task in cells[0].tasks:
                if task.kind == "generate":
                    self._generate(task)
                else:
                    for attempt in list(self._open):
                        self._guard(attempt, lambda: self._score(task, attempt))  # noqa: B023  # called at once
            self._progress.packed()
            # after the last response is on disk: a failure here loses no decoded lane
            self._compare()
            # yield each cell as soon as it is complete: a kill then loses only the cells after it
            for attempt in list(self._open):
                if self._guard(attempt, lambda: self._finish(attempt)):  # noqa: B023  # called at once
                    self._open.remove(attempt)
                    yield attempt.cell
        except (KeyboardInterrupt, GeneratorExit, CannotStore) as stop:  # GeneratorExit: the caller was interrupted
            for attempt in self._open:
                with suppress(OSError, ClaimLost):
                    attempt.writer.interrupt("preempted" if isinstance(stop, Preempted) else "interrupted")
            raise

    @property
    def _partial(self) -> str | None:
        """Which weights the checkpoint lacked; None if it was complete."""
        return getattr(self._engine, "partial", None)

    def _guard(self, attempt: Attempt, work: Callable[[], None]) -> bool:
        """Call `work`; False if it failed, which ends the attempt but no other."""
        try:
            work()
        except ClaimLost:
            self._drop(attempt)
        except Exception as error:
            check_wrapped(error)
            self._fail(attempt, error)
        return attempt in self._open

    def _drop(self, attempt: Attempt) -> None:
        """Stop work on a cell whose claim another process has taken."""
        self._open.remove(attempt)
        self._progress.note(f"{attempt.cell.name}: another process has taken it over")

    def _fail(self, attempt: Attempt, error: Exception) -> None:
        """Record the failure of one cell. Raises CannotStore if the disk accepts no more data."""
        fault, folder = fault_of(error, where=self._where()), attempt.cell.folder
        if fault.kind == "disk_full":
            raise cannot_store(error, folder) or error
        # only this cell fails: its committed lanes stay, and the next run continues after them
        try:
            attempt.writer.fail(fault, scrub(traceback.format_exc()))
        except ClaimLost:
            self._drop(attempt)
            return
        except OSError as write_error:
            if (fatal := cannot_store(write_error, folder)) is not None:
                raise fatal from error
            self._progress.note(f"{attempt.cell.name}: its status cannot be written: {write_error}")
        self._open.remove(attempt)
        self._failed(attempt.cell, error)

    def _where(self) -> str | None:
        """The name of the GPU, for the record of a failure; None on a CPU."""
        device = getattr(self._engine, "device", None)
        if device is None or device.type != "cuda":
            return None
        import torch

        return torch.cuda.get_device_name(device)

    def _begin(self, cell: Cell, encoded: Encoded) -> None:
        """Open a cell's folder and add it to the pack.

        Args:
            cell: A claimed cell.
            encoded: The requests of each task as token ids, by task name; cells of a pack share them.
        """
        try:
            for task in cell.tasks:
                if task.name not in encoded:
                    encoded[task.name] = encode_requests(task, self._engine, cell.config.truncate, cell.config.seed)
            plans = {task.name: plan_of(cell, task) for task in cell.tasks}
            made_by = provenance(
                code_digest(),
                {
                    "id": cell.model.name,
                    "digest": scrub(cell.model.digest),
                    "dtype": cell.dtype,
                    "device": cell.device,
                    "experts_implementation": self._engine.experts_implementation,
                    **({} if self._partial is None else {"partial": self._partial}),
                },
                data_digests(cell.tasks),
                revisions(cell.tasks),
            )
            # this reads what an earlier attempt has committed: those lanes are not run again
            writer = CellWriter.open(
                self._hold_of(cell.folder),
                info=cell.info() | {"num_layers": self._engine.num_layers},
                config_yaml=cell.config_yaml(),
                provenance=made_by,
                plan={name: plan_json(cell, plan) for name, plan in plans.items()},
            )
        except ClaimLost:
            self._progress.note(f"{cell.name}: another process has taken it over")
            return
        except Exception as error:
            check_wrapped(error)
            # a full disk would fail every cell alike: end the run instead of failing them one by one
            if (fatal := cannot_store(error, cell.folder)) is not None:
                raise fatal from error
            with suppress(OSError, ClaimLost):
                fault = fault_of(error)
                record_failure(self._hold_of(cell.folder), cell.info(), cell.config_yaml(), fault.json())
            self._failed(cell, error)
            return
        attempt = Attempt(
            cell=cell, requests=encoded, plans=plans, writer=writer, policy=cell.policy, numerics=bits_of(made_by)
        )
        self._open.append(attempt)
        if cell.note is not None:
            writer.notes.append(cell.note)
        for task in cell.tasks:
            # the last steps of such a lane run with fewer rows than the batch size: the results must state it
            few = drained(plans[task.name])
            if few:
                writer.notes.append(
                    f"{task.name}: no other documents for {few} of {len(plans[task.name].lanes)} lanes, which may drain"
                )
            # resumed requests advance the bar, but not the rate from which the remaining time is estimated
            resumed = sum(len(plans[task.name].lanes[lane]) for lane in writer.lanes[task.name])
            self._progress.advance(cell, (task.name, cell.config.batch_size), resumed, run=False)
        # guarded, because it runs the model for this cell alone: a failure must not end the other cells
        if cell.policy is not None and cell.config.match_active is not None:
            self._guard(attempt, lambda: self._match(attempt))

    def _match(self, attempt: Attempt) -> None:
        """Replace the cell's policy by the one whose knob gives the requested number of active experts."""
        cell, config = attempt.cell, attempt.cell.config
        match = self._references.matched(
            cell,
            self._engine,
            lambda task: encode_requests(task, self._engine, config.truncate, config.seed),
            lambda task: plan_of(cell, task),
        )
        # name and id state the request and stay as they are; the value that was set is part of the metrics
        attempt.policy, attempt.extra["matched"] = match.policy, match.summary()
        if abs(match.active - match.target) > _NEAR * match.target:
            nearest = f"the nearest that {match.parameter} allows is {match.active:.2f} ({match.value:g})"
            self._progress.note(f"{cell.name}: {match.target:.2f} active experts wanted; {nearest}")
        if match.also:
            changed = ", ".join(f"{name}={value}" for name, value in match.also.items())
            attempt.writer.notes.append(f"match_active: set {changed} as well, {match.parameter} alone did not do")
            self._progress.note(f"{cell.name}: {attempt.writer.notes[-1]}")
        self._progress.advance(cell, ("match", cell.config.batch_size), 1)

    def _generate(self, task: Task) -> None:
        """Decode all cells together; if that fails, one by one, so that only the cells at fault fail."""
        if len(self._open) > 1:
            try:
                return self._decode(task, self._open)
            except Exception as error:
                check_wrapped(error)
                if (fatal := cannot_store(error, self._open[0].cell.study)) is not None:
                    raise fatal from error
                self._progress.note(f"pack of {len(self._open)} cells: {first_line(error)}; running them one by one")
        # outside the except block: there the error would keep the tensors of the failed pack alive
        for attempt in list(self._open):
            self._guard(attempt, lambda: self._decode(task, [attempt]))  # noqa: B023  # called at once

    def _decode(self, task: Task, attempts: Sequence[Attempt]) -> None:
        # resumed cells may have completed this task; the lanes of the others do not depend on who runs beside them
        attempts = [attempt for attempt in attempts if attempt.writer.missing(task.name)]
        if not attempts:
            return
        jobs = [attempt.job(task, self._engine) for attempt in attempts]
        lanes = self._progress.lanes(sum(len(job.lanes) for job in jobs))
        noted = self._noted(attempts)
        with kept_lanes(task.name, attempts, self._open, self._engine, self._progress) as keeper:
            for number, result in self._engine.run_jobs(jobs, on_step=self._progress.step, on_note=noted, **keeper):
                if not keeper:
                    check()  # a signal that came inside a callback from compiled code raised nothing there
                attempt = attempts[number]
                if attempt not in self._open:
                    continue  # its claim was lost during an earlier commit
                try:
                    self._commit(attempt, lane_record(task, attempt.requests[task.name], result))
                except ClaimLost:
                    self._drop(attempt)
                    if not any(attempt in self._open for attempt in attempts):
                        return  # the last cell is gone
                    continue
                lanes.done()
                stage = (task.name, attempt.cell.config.batch_size)
                self._progress.advance(attempt.cell, stage, result.own)

    def _commit(self, attempt: Attempt, lane: LaneRecord) -> None:
        """Make a lane durable. With the first, cells that wait their turn got further too."""
        attempt.writer.commit(lane)
        if not self._further:
            self._further = True
            note_further(self._open)

    def _score(self, task: Task, attempt: Attempt) -> None:
        check()
        missing, config = attempt.writer.missing(task.name), attempt.cell.config
        if not missing:
            return
        requests, plan = attempt.requests[task.name], attempt.plans[task.name]
        if config.scoring == "prefill" and attempt.policy is not None and attempt.phases == "decode":
            self._noted([attempt])(
                f"{attempt.cell.name}: scoring=prefill has no decode step, and with phases=decode the policy never "
                f"acts: its {task.name} is vanilla's; use scoring=decode or phases=both"
            )
        results = self._engine.score_lanes(
            requests,
            plan,
            attempt.policy,
            lanes=missing,
            scoring=cast("Scoring", config.scoring),
            on_step=self._progress.tokens,
            **attempt.acts,
        )
        for result in results:
            self._commit(attempt, lane_record(task, requests, result))
            self._progress.advance(attempt.cell, (task.name, config.batch_size), result.own)

    def _noted(self, attempts: Sequence[Attempt]) -> Callable[[str], None]:
        """A callback that shows a note to the user and stores it in each of the cells."""

        def note(text: str) -> None:
            self._progress.note(text)
            for attempt in attempts:
                attempt.writer.notes.append(text)

        return note

    def _compare(self) -> None:
        """Compare the policies with vanilla; cells that can share a vanilla pass are measured together."""
        for group in groups_for_fidelity(self._open):
            # after a failure the cells run one by one: then only the cell at fault fails, with its own message
            with suppress(Exception):
                if len(group) > 1:
                    self._measure_fidelity(group)
                    continue
            for attempt in group:
                self._guard(attempt, lambda: self._measure_fidelity([attempt]))  # noqa: B023  # called at once

    def _measure_fidelity(self, attempts: Sequence[Attempt]) -> None:
        measure_fidelity(attempts, self._engine, self._references, self._progress)

    def _finish(self, attempt: Attempt) -> None:
        cell, writer = attempt.cell, attempt.writer
        writer.hold.check()  # without the claim, the measurements below would be in vain
        timing_rows, timing_info = None, None
        more: dict[str, pa.Table] = {}
        if attempt.tokens is not None:
            more["tokens"] = pa.concat_tables([TOKENS.empty_table(), *attempt.tokens])
        # timing needs all lanes: its windows are drawn from the steps of the finished run
        if cell.config.measure.latency:
            with self._progress.timing():
                timing_rows, timing_info, sections = measure_cell(
                    cell,
                    attempt.policy,
                    self._engine,
                    attempt.requests,
                    writer.lanes,
                    self._progress,
                    self._noted([attempt]),
                )
            if sections:
                more["breakdown"] = pa.Table.from_pylist(sections, schema=BREAKDOWN)
        # after the timing: generated code, which runs in the sandbox here, would disturb it
        scores = {task.name: self._scores(attempt, task) for task in cell.tasks}
        metrics = cell_metrics(
            [metric for of_task in scores.values() for metric in of_task.metrics],
            {task.name: writer.responses(task.name) for task in cell.tasks},
            list(writer.steps()),
            cell.config.batch_size,
            attempt.fidelity,
        )
        note = drained_note(metrics, cell.config.batch_size)
        if note is not None:
            self._noted([attempt])(f"{cell.name}: {note}")
        record_execution(self._engine, attempt.policy, writer, self._progress)
        writer.finish(
            samples=[
                row for task in cell.tasks for row in sample_rows(task, scores[task.name], writer.responses(task.name))
            ],
            metrics=metrics | attempt.extra,
            timing_rows=timing_rows,
            timing_info=timing_info,
            fidelity_rows=attempt.fidelity,
            invalid=invalid_reasons(cell, writer, self._partial),
            more=more,
        )

    def _scores(self, attempt: Attempt, task: Task) -> Scores:
        given = responses_of(task, attempt.writer.responses(task.name))
        return task.score(given, sandbox=sandbox_of(attempt.cell.config) if task.runs_code else None)
