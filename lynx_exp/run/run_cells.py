"""Run cells in this process: checked first, one model loaded at a time, in packs, a failure stopping no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cache
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from lynx_exp.config import Config
from lynx_exp.run import torchrun as ranks
from lynx_exp.run.cell_tracking import Trackers, end_tracking, track
from lynx_exp.run.dry_run import print_plan
from lynx_exp.run.first_steps import make_what_lacks
from lynx_exp.run.interrupt import check, check_wrapped, stoppable, with_message
from lynx_exp.run.load_tasks import LoadTask
from lynx_exp.run.notes import notes_of
from lynx_exp.run.outcomes import Outcome, Report, describe_committed, headline_of, print_outcomes, run_then
from lynx_exp.run.packs import pack_groups
from lynx_exp.run.planned_cell import Cell
from lynx_exp.run.prepare_cells import prepare_cells
from lynx_exp.run.run_pack import Pack
from lynx_exp.run.run_progress import Progress
from lynx_exp.run.skip_rules import Refusals
from lynx_exp.run.sweep_records import recorded_sweeps
from lynx_exp.run.threads import ThreadChooser
from lynx_exp.run.vanilla_references import References
from lynx_exp.store.cell_writer import record_failure, tidy
from lynx_exp.store.claims import Claims, holder_of
from lynx_exp.store.faults import OUT_OF_MEMORY, CannotStore, cannot_store, fault_of
from lynx_exp.store.hold import ClaimLost
from lynx_exp.store.identity import digest
from lynx_exp.store.read import is_done
from lynx_exp.store.survey import requests_kept
from lynx_exp.tasks.load_task import load_task
from lynx_exp.wording import counted, first_line

if TYPE_CHECKING:
    from lynx_exp.engine import LaneEngine
    from lynx_exp.routing.backends.triton.kernels import Kernel

OpenEngine = Callable[[Config], "LaneEngine"]


def open_engine(config: Config) -> LaneEngine:
    """Load the model of `config` into its backend."""
    if config.backend == "vllm":
        from lynx_exp.run.vllm_settings import open_vllm

        return open_vllm(config)
    from transformers.utils.logging import disable_progress_bar

    from lynx_exp.engine import Engine
    from lynx_exp.models.family_sizes import random_fields

    disable_progress_bar()  # this run has its own
    model = config.model
    common: dict[str, Any] = {
        "dtype": config.dtype,
        "device": config.device,
        "experts_implementation": model.experts_implementation,
        "max_rows": config.pack.max_rows,
        "memory_gib": config.pack.memory_gib,
        "steps": config.steps,
    }
    if model.kind == "random":
        fields = random_fields(model.id, model.sizes, model.config)
        return Engine.from_config(model.id, fields, seed=model.seed, **common)
    common |= {
        name: getattr(model, name) for name in ("device_map", "parallel", "adapter") if getattr(model, name) is not None
    }
    for name in ("trust_remote_code", "allow_partial"):
        if getattr(model, name):
            common[name] = True
    return Engine.from_pretrained(model.id, revision=model.revision, **common)


class _Engines:
    """The engine that was used last; another model takes its place."""

    def __init__(self, open_engine: OpenEngine, load: LoadTask) -> None:
        self._open, self._load = open_engine, load
        self.references = References(load)
        self.default_threads: Callable[[], int] = _most_threads
        self._key: str | None = None
        self._engine: LaneEngine | None = None

    @staticmethod
    def key(config: Config) -> str:
        return digest(
            [
                asdict(config.model),
                config.dtype,
                config.device,
                config.steps,
                asdict(config.pack),
                config.backend,
                asdict(config.vllm),
            ]
        )

    def get(self, config: Config) -> LaneEngine:
        from lynx_exp.routing.backends.triton.kernels import set_kernel

        # both hold for the whole process, so they are set anew for each pack, also where the engine stays
        _set_threads(config.threads or self.default_threads())
        set_kernel(cast("Kernel", config.kernel))  # Config has checked it
        if self._engine is None or self._key != self.key(config):
            if self._engine is not None:
                self._engine.close()
            self._engine = None  # free the old one first
            self._engine, self._key = self._open(config), self.key(config)
            self.references = References(self._load)  # vanilla of another model compares with nothing
        return self._engine


def _set_threads(threads: int) -> None:
    import torch

    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@cache
def _most_threads() -> int:
    """PyTorch's own choice, or OMP_NUM_THREADS."""
    import torch

    return torch.get_num_threads()


def run_cells(
    configs: Sequence[Config],
    *,
    packed: bool = True,
    console: Console | None = None,
    open_engine: OpenEngine = open_engine,
    load: LoadTask = load_task,
    claims: Claims | None = None,
    poll_s: float = 0.5,
) -> Report:
    """Run every config's cell that is not done yet, in packs (or one by one); print progress, a closing line, and what
    `then` asks for; before, what `first` asks for. With `plan`, print what would be run instead, and run nothing.

    Cells that another process works on are left to it; they are waited for at the end, every `poll_s`, and taken over
    if it dies. Raises ValueError, before any model is loaded, if any config is wrong; Interrupted on Ctrl-C, Preempted
    on SIGTERM.
    """
    console = console or Console(emoji=False, soft_wrap=True)
    make_what_lacks(configs, console)
    cells = prepare_cells(configs, load)
    # configs that come to one cell are run once; the first of them decides the order
    unique = list({cell.folder: cell for cell in reversed(cells)}.values())[::-1]
    for note in notes_of(unique):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if any(cell.config.plan for cell in unique):
        print_plan(unique, console, packed=packed)
        return Report(outcomes=[Outcome(state="planned", folder=cell.folder) for cell in cells])
    with ExitStack() as stack:
        # written before the first cell, so that `status` can name what is missing after a kill
        stack.enter_context(recorded_sweeps(unique))
        stack.enter_context(stoppable())
        claims = claims or Claims()
        # given back on every way out, so that whoever waits for these cells may go on
        stack.callback(claims.close)
        run = _Run(unique, console, _Engines(open_engine, load), claims, packed)
        stack.enter_context(run.progress)
        try:
            run.all(poll_s)
        except CannotStore as over:
            run.give_up(str(over))
        except KeyboardInterrupt as stop:
            raise with_message(stop, describe_committed(unique)) from None
    report = Report(outcomes=[run.outcomes[cell.folder] for cell in cells])
    print_outcomes(report, unique, console)
    # a report over some of the cells is worth having; of none there is nothing to report
    if any(outcome.state != "failed" for outcome in report.outcomes):
        run_then(unique, console)
    end_tracking([cell for cell in unique if run.outcomes[cell.folder].state == "done"], run.trackers)
    return report


class _Run:
    """Cells on their way, and what became of those that have arrived."""

    def __init__(
        self, cells: Sequence[Cell], console: Console, engines: _Engines, claims: Claims, packed: bool
    ) -> None:
        self.claims, self._packed, self._refusals = claims, packed, Refusals(cells)
        self.outcomes: dict[Path, Outcome] = {}
        self.trackers: Trackers = {}
        self._todo: list[Cell] = []
        # before any model is loaded: a sweep of which all is done ends within seconds
        for cell in cells:
            if is_done(cell.folder):
                tidy(cell.folder, claims)
                self.outcomes[cell.folder] = Outcome(state="skipped", folder=cell.folder)
            elif (reason := self._refusals.reason(cell)) is not None:
                self._refusals.record(cell, reason, claims)
                self.outcomes[cell.folder] = Outcome(state="failed", folder=cell.folder, error=reason)
            else:
                self._todo.append(cell)
        # a model is loaded once for all of its cells, in whatever order the sweep names them
        self._todo = _by_model(self._todo)
        self._models = {_Engines.key(cell.config) for cell in self._todo}
        self._ran = False
        """Whether any engine was there."""
        self.progress = Progress(self._todo, console)
        self._threads: ThreadChooser | None = None
        engines.default_threads = lambda: self._threads.threads if self._threads is not None else _most_threads()
        self._engines = ranks.announce_calls(engines)

    def all(self, poll_s: float) -> None:
        """Until nothing is left to do, here or elsewhere."""
        waiting: list[Cell] = []
        while self._todo:
            for pack in pack_groups(self._todo) if self._packed else [[cell] for cell in self._todo]:
                self._pack(pack)
            self._todo = [cell for cell in self._todo if cell.folder not in self.outcomes]
            if self._todo and {cell.folder for cell in self._todo} != {cell.folder for cell in waiting}:
                holder = holder_of(self._todo[0].folder) or "another process"
                self.progress.note(f"waiting for {counted(len(self._todo), 'cell')} run elsewhere, by {holder} first")
            waiting = self._todo
            # cells that others hold: they finish them, or die, and then the next round takes over
            if waiting:
                sleep(poll_s)

    def give_up(self, reason: str) -> None:
        """Nothing more can be stored: of each cell that is left, whether any of it is."""
        for cell in self._todo:
            kept, total = requests_kept(cell.folder), sum(len(task.requests) for task in cell.tasks)
            what = f"stopped, {kept} of {total} requests are kept" if kept else "not run"
            self.outcomes.setdefault(
                cell.folder, Outcome(state="failed", folder=cell.folder, error=f"{what}: {reason}")
            )

    def _pack(self, cells: Sequence[Cell]) -> None:
        """Those of a pack that nobody else works on."""
        check()
        mine = [cell for cell in cells if self._take(cell)]
        if not mine:
            return
        self.progress.begin(mine)
        self._choose_threads(mine[0].config)
        try:
            engine = self._engines.get(mine[0].config)
        except Exception as error:  # libraries that read checkpoints raise what they like
            check_wrapped(error)
            self._refuse_model(mine, error)
            return
        self._ran = True
        pack = Pack(engine, self.progress, self._engines.references, self._failed, self.claims.hold)
        for cell in pack.run(mine):
            self._end(cell, Outcome(state="done", folder=cell.folder))
            track(cell, self.trackers)
        for cell in mine:  # those whose claim was lost on the way
            self.claims.give_back(cell.folder)

    def _choose_threads(self, config: Config) -> None:
        """As many as cores are free, from now on; a number that the user gave is left alone."""
        self.progress.threads = None
        if config.threads is None and _most_threads() > 1:
            if self._threads is None:
                self._threads = ThreadChooser(_most_threads(), _set_threads, self.progress.note)
            self.progress.threads = self._threads
            self._threads.start()

    def _take(self, cell: Cell) -> bool:
        """Claim the cell if it is still to be done, free, and not refused for what has happened meanwhile."""
        if cell.folder in self.outcomes:
            return False
        reason = self._refusals.reason(cell)
        if reason is not None:
            self._refusals.record(cell, reason, self.claims)
            self._end(cell, Outcome(state="failed", folder=cell.folder, error=reason))
            return False
        try:
            taken = self.claims.take(cell.folder)
        except OSError as error:
            if (over := cannot_store(error, cell.folder)) is not None:
                raise over from error
            self._end(cell, Outcome(state="failed", folder=cell.folder, error=f"cannot be claimed: {error}"))
            return False
        if taken and is_done(cell.folder):  # by somebody else, meanwhile
            self._end(cell, Outcome(state="skipped", folder=cell.folder))
            return False
        return taken

    def _end(self, cell: Cell, outcome: Outcome) -> None:
        self.outcomes[cell.folder] = outcome
        self.claims.give_back(cell.folder)
        self.progress.end(cell, outcome.state, headline_of(cell.folder) if outcome.state == "done" else "")

    def _failed(self, cell: Cell, error: Exception) -> None:
        self._refusals.note(cell)
        self._end(cell, Outcome(state="failed", folder=cell.folder, error=f"{type(error).__name__}: {error}"))

    def _refuse_model(self, cells: Sequence[Cell], error: Exception) -> None:
        """A model that does not load costs its own cells; as the only one of a run it is bad input."""
        model = cells[0].config.model.id
        fault, line = fault_of(error), first_line(error)
        kind = fault.kind if fault.kind in (*OUT_OF_MEMORY, "disk_full") else "load"
        alone = not self._ran and len(self._models) == 1
        if alone and kind not in OUT_OF_MEMORY and not isinstance(error, RuntimeError):
            raise ValueError(f"model.id={model}: {line}") from error
        for cell in cells:
            try:
                hold = self.claims.hold(cell.folder)
                record_failure(hold, cell.info(), cell.config_yaml(), fault.json() | {"kind": kind})
            except ClaimLost:
                continue  # whoever has it sees for himself
            except OSError as another:
                if (over := cannot_store(another, cell.folder)) is not None:
                    raise over from error
            self._failed(cell, ValueError(f"model.id={model}: {line}"))


def follow() -> None:
    """What every rank of torchrun but the first does: the same calls of the engine."""
    ranks.follow(_Engines(open_engine, load_task))


def _by_model(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells, those of one model together, so that each model is loaded once."""
    order = list(dict.fromkeys(_Engines.key(cell.config) for cell in cells))
    return sorted(cells, key=lambda cell: order.index(_Engines.key(cell.config)))
