"""A pack of cells on a loaded engine: requests -> lanes of all cells side by side, each committed to its cell -> per
cell latency, fidelity, scores, metrics, DONE."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from lynx_exp.run.attempt import Attempt, Encoded
from lynx_exp.run.batch_plan import drained, plan_json, plan_of
from lynx_exp.run.cell_rows import lane_record, responses_of, sample_rows
from lynx_exp.run.encode import encode_requests
from lynx_exp.run.interrupt import Preempted, check
from lynx_exp.run.invalid_results import invalid_reasons
from lynx_exp.run.kernel_notes import record_execution, show_slow_steps
from lynx_exp.run.load_tasks import data_digests, revisions, sandbox_of
from lynx_exp.run.metrics import cell_metrics, drained_note
from lynx_exp.run.planned_cell import Cell, Task
from lynx_exp.run.run_progress import Progress
from lynx_exp.run.time_cell import measure_cell
from lynx_exp.run.vanilla_references import References, fidelity_rows
from lynx_exp.store.cell_writer import CellWriter, record_failure
from lynx_exp.store.faults import CannotStore, cannot_store, fault_of
from lynx_exp.store.hold import ClaimLost, Hold
from lynx_exp.store.identity import code_digest
from lynx_exp.store.provenance import provenance, scrub
from lynx_exp.store.tables import BREAKDOWN, TOKENS
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    from lynx_exp.engine import LaneEngine, Scoring
    from lynx_exp.tasks import Scores

_NEAR = 0.1
"""Relative: a knob that comes no nearer to the active experts asked for is worth a line."""

Failed = Callable[[Cell, Exception], None]
HoldOf = Callable[[Path], Hold]


class Pack:
    """Cells that differ in policy and batch size only, on one engine. `run` yields each cell as it is done."""

    def __init__(
        self,
        engine: LaneEngine,
        progress: Progress,
        references: References,
        failed: Failed,
        hold_of: HoldOf,
    ) -> None:
        """`failed` is told of a cell that an exception ended; the others go on. `hold_of`: the claim on a cell's
        folder, through which all is written; a cell whose claim is lost is dropped without a word to `failed`."""
        self._engine, self._progress, self._references, self._failed = engine, progress, references, failed
        self._hold_of = hold_of
        self._open: list[Attempt] = []
        show_slow_steps(engine, progress)

    def run(self, cells: Sequence[Cell]) -> Iterator[Cell]:
        """What is missing of `cells`, which are claimed. KeyboardInterrupt leaves what is committed, and is raised
        again; so is CannotStore, after which nothing can be stored."""
        try:
            encoded: Encoded = {}
            for cell in cells:
                self._begin(cell, encoded)
            # only now: cells that could not begin share no time with the others
            for attempt in self._open:
                attempt.writer.together = len(self._open)
            # cells of a pack have the same tasks (`pack_groups`), so that all of them decode one at a time together
            for task in cells[0].tasks:
                if task.kind == "generate":
                    self._generate(task)
                else:
                    for attempt in list(self._open):
                        self._guard(attempt, lambda: self._score(task, attempt))  # noqa: B023  # called at once
            self._progress.packed()
            # only behind all answers, which are on disk by now: what fails here costs no decoded lane
            self._compare()
            # one after the other, each handed on at once: a kill between two costs only what follows
            for attempt in list(self._open):
                if self._guard(attempt, lambda: self._finish(attempt)):  # noqa: B023  # called at once
                    self._open.remove(attempt)
                    yield attempt.cell
        except (KeyboardInterrupt, GeneratorExit, CannotStore) as stop:  # GeneratorExit: one came to whom this yields
            for attempt in self._open:
                with suppress(OSError, ClaimLost):
                    attempt.writer.interrupt("preempted" if isinstance(stop, Preempted) else "interrupted")
            raise

    @property
    def _partial(self) -> str | None:
        """What the model's checkpoint lacked; None: nothing."""
        return getattr(self._engine, "partial", None)

    def _guard(self, attempt: Attempt, work: Callable[[], None]) -> bool:
        """Do it; False if it failed, which ends the attempt."""
        try:
            work()
        except ClaimLost:
            self._drop(attempt)
        except Exception as error:
            self._fail(attempt, error)
        return attempt in self._open

    def _drop(self, attempt: Attempt) -> None:
        """Its claim is lost: what follows is another's."""
        self._open.remove(attempt)
        self._progress.note(f"{attempt.cell.name}: another process has taken it over")

    def _fail(self, attempt: Attempt, error: Exception) -> None:
        """Write down what happened. Where nothing can be written any more, everything ends."""
        fault, folder = fault_of(error, where=self._where()), attempt.cell.folder
        if fault.kind == "disk_full":
            raise cannot_store(error, folder) or error
        # a cell fails, not the sweep; its lanes stay, and the next run of it goes on behind them
        try:
            attempt.writer.fail(fault, scrub(traceback.format_exc()))
        except ClaimLost:
            self._drop(attempt)
            return
        except OSError as another:
            if (over := cannot_store(another, folder)) is not None:
                raise over from error
            self._progress.note(f"{attempt.cell.name}: its status cannot be written: {another}")
        self._open.remove(attempt)
        self._failed(attempt.cell, error)

    def _where(self) -> str | None:
        """The accelerator, by its name."""
        device = getattr(self._engine, "device", None)
        if device is None or device.type != "cuda":
            return None
        import torch

        return torch.cuda.get_device_name(device)

    def _begin(self, cell: Cell, encoded: Encoded) -> None:
        try:
            for task in cell.tasks:
                if task.name not in encoded:
                    encoded[task.name] = encode_requests(task, self._engine, cell.config.truncate, cell.config.seed)
            plans = {task.name: plan_of(cell, task) for task in cell.tasks}
            # from here on the folder is this attempt's, and lanes that an earlier one committed are not run again
            writer = CellWriter.open(
                self._hold_of(cell.folder),
                info=cell.info() | {"num_layers": self._engine.num_layers},
                config_yaml=cell.config_yaml(),
                provenance=provenance(
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
                ),
                plan={name: plan_json(cell, plan) for name, plan in plans.items()},
            )
        except ClaimLost:
            self._progress.note(f"{cell.name}: another process has taken it over")
            return
        except Exception as error:
            # a full disk fails every cell alike: the run ends instead of failing them one by one
            if (over := cannot_store(error, cell.folder)) is not None:
                raise over from error
            with suppress(OSError, ClaimLost):
                fault = fault_of(error)
                record_failure(self._hold_of(cell.folder), cell.info(), cell.config_yaml(), fault.json())
            self._failed(cell, error)
            return
        attempt = Attempt(cell=cell, requests=encoded, plans=plans, writer=writer, policy=cell.policy)
        self._open.append(attempt)
        if cell.note is not None:
            writer.notes.append(cell.note)
        for task in cell.tasks:
            # such lanes have fewer rows at the end than their batch size says: the reader must know
            few = drained(plans[task.name])
            if few:
                writer.notes.append(
                    f"{task.name}: no other documents for {few} of {len(plans[task.name].lanes)} lanes, which may drain"
                )
            # resumed requests move the bar, but not the rate that the time left is computed from
            found = sum(len(plans[task.name].lanes[lane]) for lane in writer.lanes[task.name])
            self._progress.advance(cell, (task.name, cell.config.batch_size), found, run=False)
        # under a guard, as all that runs the model for one cell: it must not take the pack with it
        if cell.policy is not None and cell.config.match_active is not None:
            self._guard(attempt, lambda: self._match(attempt))

    def _match(self, attempt: Attempt) -> None:
        cell, config = attempt.cell, attempt.cell.config
        found = self._references.matched(
            cell,
            self._engine,
            lambda task: encode_requests(task, self._engine, config.truncate, config.seed),
            lambda task: plan_of(cell, task),
        )
        # the cell keeps its name and id, which say what was asked for; what was set for it stands in its metrics
        attempt.policy, attempt.extra["matched"] = found.policy, found.summary()
        if abs(found.active - found.target) > _NEAR * found.target:
            nearest = f"the nearest that {found.parameter} allows is {found.active:.2f} ({found.value:g})"
            self._progress.note(f"{cell.name}: {found.target:.2f} active experts wanted; {nearest}")
        if found.also:
            turned = ", ".join(f"{name}={value}" for name, value in found.also.items())
            attempt.writer.notes.append(f"match_active: set {turned} as well, {found.parameter} alone did not do")
            self._progress.note(f"{cell.name}: {attempt.writer.notes[-1]}")
        self._progress.advance(cell, ("match", cell.config.batch_size), 1)

    def _generate(self, task: Task) -> None:
        """All attempts together; if that fails, one by one, so that only those fail that must."""
        if len(self._open) > 1:
            try:
                return self._decode(task, self._open)
            except Exception as error:
                if (over := cannot_store(error, self._open[0].cell.study)) is not None:
                    raise over from error
                self._progress.note(f"pack of {len(self._open)} cells: {first_line(error)}; running them one by one")
        for attempt in list(self._open):  # not while the error holds what the pack had in memory
            self._guard(attempt, lambda: self._decode(task, [attempt]))  # noqa: B023  # called at once

    def _decode(self, task: Task, attempts: Sequence[Attempt]) -> None:
        # cells that resumed may have this task behind them; the lanes of the others do not depend on who is beside them
        attempts = [attempt for attempt in attempts if attempt.writer.missing(task.name)]
        if not attempts:
            return
        jobs = [attempt.job(task, self._engine) for attempt in attempts]
        lanes = self._progress.lanes(sum(len(job.lanes) for job in jobs))
        for number, result in self._engine.run_jobs(jobs, on_step=self._progress.step, on_note=self._noted(attempts)):
            check()  # a signal may have come while compiled code called back, which swallows what is raised
            attempt = attempts[number]
            if attempt not in self._open:
                continue  # its claim was lost meanwhile
            try:
                attempt.writer.commit(lane_record(task, attempt.requests[task.name], result))
            except ClaimLost:
                self._drop(attempt)
                # for nobody is a whole pack decoded on
                if not any(attempt in self._open for attempt in attempts):
                    return
                continue
            lanes.done()
            stage = (task.name, attempt.cell.config.batch_size)
            self._progress.advance(attempt.cell, stage, result.own)

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
            attempt.writer.commit(lane_record(task, requests, result))
            self._progress.advance(attempt.cell, (task.name, config.batch_size), result.own)

    def _noted(self, attempts: Sequence[Attempt]) -> Callable[[str], None]:
        def note(text: str) -> None:
            self._progress.note(text)
            for attempt in attempts:
                attempt.writer.notes.append(text)

        return note

    def _compare(self) -> None:
        """Fidelity of all policies of one batch size at once, and their tokens: vanilla goes through the model once for
        them. Those that act on prompts have theirs in one pass with the responses, which may change last bits: vanilla
        then too."""
        by_plan: dict[tuple[int, bool], list[Attempt]] = {}
        for attempt in self._open:
            if attempt.compares or attempt.cell.config.tokens:
                prefills = attempt.phases in ("prefill", "both")
                by_plan.setdefault((attempt.cell.config.batch_size, prefills), []).append(attempt)
        for together in by_plan.values():
            # what fails together is tried one by one, where the cell whose fault it is fails alone and says so
            with suppress(Exception):
                if len(together) > 1:
                    self._compare_some(together)
                    continue
            for attempt in together:
                self._guard(attempt, lambda: self._compare_some([attempt]))  # noqa: B023  # called at once

    def _compare_some(self, attempts: Sequence[Attempt]) -> None:
        # anew at each try: rows of one that failed half way must not be there twice
        for attempt in attempts:
            attempt.fidelity = [] if attempt.compares else None
            attempt.tokens = [] if attempt.cell.config.tokens else None
        asked = [number for number, attempt in enumerate(attempts) if attempt.tokens is not None]
        first = attempts[0]
        policies = [(attempt.policy, attempt.phases, attempt.cell.config.layers) for attempt in attempts]
        for task in first.cell.tasks:
            requests, plan = first.requests[task.name], first.plans[task.name]
            continued = self._references.continued(first.cell, task, self._engine, requests, plan, "fidelity")
            for number, row, tokens in fidelity_rows(self._engine, policies, task, continued, plan, asked):
                attempt = attempts[number]
                if attempt.fidelity is not None:
                    attempt.fidelity.append(row)
                if attempt.tokens is not None and tokens is not None:
                    attempt.tokens.append(tokens)
        for attempt in attempts:
            if attempt.policy is None or not attempt.compares:
                continue
            first_task = attempt.cell.tasks[0].name
            plan = attempt.plans[first_task]
            prompts = [attempt.requests[first_task][number].prompt_ids for number in plan.lanes[0][: plan.widest]]
            attempt.extra["selection_us"] = self._engine.selection_time(attempt.policy, prompts)
            self._progress.advance(attempt.cell, ("fidelity", attempt.cell.config.batch_size), 1)

    def _finish(self, attempt: Attempt) -> None:
        cell, writer = attempt.cell, attempt.writer
        writer.hold.check()  # before anything is measured in vain
        timing_rows, timing_info = None, None
        more: dict[str, pa.Table] = {}
        if attempt.tokens is not None:
            more["tokens"] = pa.concat_tables([TOKENS.empty_table(), *attempt.tokens])
        # times come after all answers: windows are drawn from the finished run
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
        # generated code runs here, in the sandbox, while no model step is timed
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
