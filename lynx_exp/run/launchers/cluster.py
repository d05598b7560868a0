"""A multirun's cells as jobs of a cluster: dealt out, submitted, watched, gathered. A job is `run_cells`, elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep

from rich.console import Console

from lynx_exp.config import Config
from lynx_exp.run.cell_tracking import end_tracking
from lynx_exp.run.dry_run import print_plan
from lynx_exp.run.first_steps import make_what_lacks
from lynx_exp.run.interrupt import stoppable, with_message
from lynx_exp.run.launchers.jobs import Cluster, Job, Lost, Work
from lynx_exp.run.load_tasks import LoadTask
from lynx_exp.run.outcomes import Outcome, Report, print_outcomes, run_then
from lynx_exp.run.packs import pack_groups
from lynx_exp.run.planned_cell import Cell
from lynx_exp.run.prepare_cells import prepare_cells
from lynx_exp.run.run_progress import work_of
from lynx_exp.run.sweep_records import recorded_sweeps
from lynx_exp.store.read import is_done
from lynx_exp.tasks.load_task import load_task
from lynx_exp.wording import counted

_QUIET_S = 30.0
"""Where there is no terminal, a line at most this often while no job starts or ends."""
_GRACE_S = 3.0
"""What cancelled jobs are given to end."""


def run_on_cluster(
    configs: Sequence[Config],
    cluster: Cluster,
    *,
    packed: bool = True,
    console: Console | None = None,
    load: LoadTask = load_task,
    poll_s: float = 1.0,
) -> Report:
    """`run_cells`, with the cells that are not done yet spread over jobs of `cluster`.

    Raises ValueError, before anything is submitted, if any config is wrong or the cluster refuses; Interrupted on
    Ctrl-C or SIGTERM, the jobs cancelled.
    """
    console = console or Console(emoji=False, soft_wrap=True)
    if cluster.device is None:  # else it would be measured on another machine than the cells run on
        make_what_lacks(configs, console)
    # checked here, where the user sees the error, rather than in a job hours later
    cells = prepare_cells([_there(config, cluster.device) for config in configs], load, here=cluster.device is None)
    by_folder: dict[Path, Cell] = {}
    for cell in cells:
        by_folder.setdefault(cell.folder, cell)
    unique = list(by_folder.values())
    for cell in unique:
        if cell.config.model.parallel is not None:
            raise ValueError(
                f"model.parallel={cell.config.model.parallel}: needs torchrun, and a job of this launcher is one "
                "process; start torchrun in a job of your own, or use model.device_map=auto"
            )
    if any(cell.config.plan for cell in unique):
        print_plan(unique, console, packed=packed)
        return Report(outcomes=[Outcome(state="planned", folder=cell.folder) for cell in cells])
    outcomes = {cell.folder: Outcome(state="skipped", folder=cell.folder) for cell in unique if is_done(cell.folder)}
    # a job whose cells are all done is not worth its place in the queue
    todo = [cell for cell in unique if cell.folder not in outcomes]
    chunks = deal(pack_groups(todo) if packed else [[cell] for cell in todo], cluster.jobs)
    with recorded_sweeps(unique):
        if chunks:
            works = [_work(chunk, packed) for chunk in chunks]
            outcomes |= _run(chunks, works, cluster, console, len(unique), poll_s)
    report = Report(outcomes=[outcomes[cell.folder] for cell in cells])
    print_outcomes(report, unique, console)
    if any(outcome.state != "failed" for outcome in report.outcomes):
        run_then(unique, console)
    end_tracking([cell for cell in unique if outcomes[cell.folder].state == "done"], {})
    return report


def _there(config: Config, device: str | None) -> Config:
    """`device=auto` by the name that it has on the cluster: a job must not take another one, and so be another cell."""
    return replace(config, device=device) if device is not None and config.device == "auto" else config


def deal(groups: Sequence[Sequence[Cell]], jobs: int) -> list[list[Cell]]:
    """The groups on at most `jobs` jobs: largest work first, onto the least loaded. A group stays together."""

    def work(group: Sequence[Cell]) -> float:
        return sum(sum(work_of(cell).values()) for cell in group)

    chunks: list[list[Cell]] = [[] for _ in range(min(jobs, len(groups)))]
    loads = [0.0] * len(chunks)
    for group in sorted(groups, key=work, reverse=True):
        least = loads.index(min(loads))
        chunks[least] += group
        loads[least] += work(group)
    return chunks


def _work(chunk: Sequence[Cell], packed: bool) -> Work:
    return Work(
        configs=[replace(cell.config, first=[], then=[]) for cell in chunk],
        folders=[cell.folder for cell in chunk],
        working_folder=Path.cwd(),
        command=sys.argv,
        packed=packed,
    )


def _run(
    chunks: Sequence[Sequence[Cell]],
    works: Sequence[Work],
    cluster: Cluster,
    console: Console,
    total: int,
    poll_s: float,
) -> dict[Path, Outcome]:
    """Submit a job a chunk, wait for all; the outcome of every cell by the folder that it has here."""
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"  # local job ids are process ids, which come again
    folder = cluster.logs(chunks[0][0].study).expanduser().absolute() / stamp
    with ExitStack() as stack:
        stack.callback(cluster.close)
        jobs = cluster.submit(works, folder)
        stack.enter_context(stoppable())
        line = stack.enter_context(_Line(console, jobs, chunks, total))
        waiting = list(range(len(jobs)))
        outcomes: dict[Path, Outcome] = {}
        try:
            while waiting:
                for number in [number for number in waiting if jobs[number].done()]:
                    waiting.remove(number)
                    outcomes |= _gather(jobs[number], chunks[number], console)
                line.show(waiting)
                if waiting:
                    sleep(poll_s)
        except KeyboardInterrupt as stop:
            _cancel([jobs[number] for number in waiting])
            raise with_message(
                stop, f"{line.done()} of {counted(total, 'cell')} done and kept, the jobs are cancelled"
            ) from None
        return outcomes


def _gather(job: Job, chunk: Sequence[Cell], console: Console) -> dict[Path, Outcome]:
    """What became of a job's cells. A cell that it found done was done by its own earlier attempt."""
    try:
        outcomes = job.outcomes()
    except Lost as lost:
        reason = f"{job.name} was lost: {lost}; log: {job.log}"
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
        return {
            cell.folder: Outcome(state="done", folder=cell.folder)
            if is_done(cell.folder)
            else Outcome(state="failed", folder=cell.folder, error=reason)
            for cell in chunk
        }
    elsewhere = [outcome.folder for cell, outcome in zip(chunk, outcomes, strict=True) if outcome.folder != cell.folder]
    if elsewhere:
        text = f"{job.name}: {len(elsewhere)} cells differ there in code, data or device, as {elsewhere[0]}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return {
        cell.folder: replace(outcome, state="done") if outcome.state == "skipped" else outcome
        for cell, outcome in zip(chunk, outcomes, strict=True)
    }


def _cancel(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.cancel()
    end = monotonic() + _GRACE_S
    while monotonic() < end and not all(job.done() for job in jobs):
        sleep(0.05)


class _Line:
    """One line: how many jobs wait, run and have ended, how many cells are done by their folders."""

    def __init__(self, console: Console, jobs: Sequence[Job], chunks: Sequence[Sequence[Cell]], total: int) -> None:
        self._console = console
        self._jobs = jobs
        self._todo = {cell.folder for chunk in chunks for cell in chunk}
        self._total = total
        self._status = console.status("")
        self._shown = ""
        self._printed = 0.0

    def __enter__(self) -> _Line:
        self._status.start()  # draws on terminals only
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def done(self) -> int:
        """Cells that are done, those of earlier launches included."""
        self._todo = {folder for folder in self._todo if not is_done(folder)}
        return self._total - len(self._todo)

    def show(self, waiting: Sequence[int]) -> None:
        """`waiting`: numbers of the jobs that have not ended."""
        started = sum(self._jobs[number].log.exists() for number in waiting)
        ended = len(self._jobs) - len(waiting)
        jobs = f"jobs: {len(waiting) - started} queued, {started} running, {ended} done"
        text = f"{jobs}; cells: {self.done()} of {self._total} done"
        if self._console.is_terminal:
            self._status.update(text)
        elif not self._shown.startswith(jobs) or (text != self._shown and monotonic() - self._printed > _QUIET_S):
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            self._shown, self._printed = text, monotonic()
