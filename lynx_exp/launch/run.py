"""Run cells in this process: checked first, one model loaded at a time, in packs, a failure stopping no other."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.console import Console

from lynx_exp.config import Config
from lynx_exp.launch import ranks
from lynx_exp.launch.cell import Cell, prepare_cells
from lynx_exp.launch.execute import Pack
from lynx_exp.launch.packs import pack_groups
from lynx_exp.launch.progress import Progress
from lynx_exp.launch.references import References
from lynx_exp.launch.tasks import LoadTask
from lynx_exp.store.identity import digest
from lynx_exp.store.read import is_done, read_cell
from lynx_exp.tasks.load import load_task
from lynx_exp.tracking import Tracker, open_tracker

if TYPE_CHECKING:
    from lynx_exp.engine import Engine
    from lynx_exp.routing.kernels import Kernel

OpenEngine = Callable[[Config], "Engine"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one config."""

    state: Literal["done", "skipped", "failed"]
    folder: Path
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Outcomes in the order of the configs; configs that came to the same cell share one."""

    outcomes: list[Outcome]

    @property
    def failed(self) -> int:
        return len({outcome.folder for outcome in self.outcomes if outcome.state == "failed"})


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM between two commits; `str()` is the line to show."""


def open_engine(config: Config) -> Engine:
    """Load the model of `config`."""
    from transformers.utils.logging import disable_progress_bar

    from lynx_exp.engine import Engine

    disable_progress_bar()  # this run has its own
    model = config.model
    common: dict[str, Any] = {
        "dtype": config.dtype,
        "device": config.device,
        "experts_implementation": model.experts_implementation,
        "max_rows": config.pack.max_rows,
        "memory_gib": config.pack.memory_gib,
    }
    if model.kind == "random":
        return Engine.from_config(model.id, model.config, seed=model.seed, **common)
    common |= {name: getattr(model, name) for name in ("device_map", "parallel") if getattr(model, name) is not None}
    if model.trust_remote_code:
        common["trust_remote_code"] = True
    return Engine.from_pretrained(model.id, revision=model.revision, **common)


class _Engines:
    """The engine that was used last; another model takes its place."""

    def __init__(self, open_engine: OpenEngine, load: LoadTask) -> None:
        self._open, self._load = open_engine, load
        self.references = References(load)
        self._key: str | None = None
        self._engine: Engine | None = None

    @staticmethod
    def key(config: Config) -> str:
        return digest([asdict(config.model), config.dtype, config.device, asdict(config.pack)])

    def get(self, config: Config) -> Engine:
        from lynx_exp.routing.kernels import set_kernel

        _set_threads(config.threads)
        set_kernel(cast("Kernel", config.kernel))  # Config has checked it
        if self._engine is None or self._key != self.key(config):
            self._engine = None  # free the old one first
            self._engine, self._key = self._open(config), self.key(config)
            self.references = References(self._load)
        return self._engine


_DEFAULT_THREADS: list[int] = []


def _set_threads(threads: int | None) -> None:
    import torch

    if not _DEFAULT_THREADS:
        _DEFAULT_THREADS.append(torch.get_num_threads())
    wanted = threads or _DEFAULT_THREADS[0]
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)


def run_cells(
    configs: Sequence[Config],
    *,
    packed: bool = True,
    console: Console | None = None,
    open_engine: OpenEngine = open_engine,
    load: LoadTask = load_task,
) -> Report:
    """Run every config's cell that is not done yet, in packs (or one by one); print progress, a closing line, and what
    `then` asks for.

    Raises ValueError, before any model is loaded, if any config is wrong; Interrupted on Ctrl-C or SIGTERM.
    """
    console = console or Console(soft_wrap=True)
    cells = prepare_cells(configs, load)
    by_folder: dict[Path, Cell] = {}
    for cell in cells:
        by_folder.setdefault(cell.folder, cell)
    unique = list(by_folder.values())
    done = {cell.folder for cell in unique if is_done(cell.folder)}
    todo = _by_model([cell for cell in unique if cell.folder not in done])
    outcomes = {folder: Outcome(state="skipped", folder=folder) for folder in done}
    trackers: dict[str, Tracker] = {}

    with stoppable(), Progress(todo, console) as progress:
        engines = ranks.lead(_Engines(open_engine, load))
        try:
            for pack in pack_groups(todo) if packed else [[cell] for cell in todo]:
                progress.begin(pack)
                for cell, outcome in _run_pack(pack, engines, progress, first=len(outcomes) == len(done)):
                    outcomes[cell.folder] = outcome
                    progress.end(cell, outcome.state)
                    if outcome.state == "done":
                        _track(cell, trackers)
        except KeyboardInterrupt:
            finished = sum(outcome.state == "done" for outcome in outcomes.values())
            raise Interrupted(
                f"interrupted: {finished + len(done)} of {len(unique)} cells are done and kept; "
                "run the same command to continue"
            ) from None

    report = Report(outcomes=[outcomes[cell.folder] for cell in cells])
    print_outcomes(report, unique, console)
    if any(outcome.state != "failed" for outcome in report.outcomes):
        run_then(unique, console, trackers)
    for tracker in trackers.values():
        tracker.close()
    return report


def follow() -> None:
    """What every rank of torchrun but the first does: the same calls of the engine."""
    ranks.follow(_Engines(open_engine, load_task))


def _by_model(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells, those of one model together, so that each model is loaded once."""
    order = list(dict.fromkeys(_Engines.key(cell.config) for cell in cells))
    return sorted(cells, key=lambda cell: order.index(_Engines.key(cell.config)))


def _run_pack(
    cells: Sequence[Cell], engines: ranks.Engines, progress: Progress, *, first: bool
) -> Iterator[tuple[Cell, Outcome]]:
    """Each cell as it is done or has failed."""
    try:
        engine = engines.get(cells[0].config)
    except (ValueError, OSError, ImportError) as error:
        if first:  # nothing has run: bad input rather than a failed cell
            raise ValueError(f"model.id={cells[0].config.model.id}: {error}") from error
        yield from ((cell, Outcome(state="failed", folder=cell.folder, error=str(error))) for cell in cells)
        return
    failed: list[tuple[Cell, Outcome]] = []

    def note_failure(cell: Cell, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        failed.append((cell, Outcome(state="failed", folder=cell.folder, error=text)))

    for cell in Pack(engine, progress, engines.references, note_failure).run(cells):
        yield cell, Outcome(state="done", folder=cell.folder)
        while failed:
            yield failed.pop(0)
    yield from failed


def _track(cell: Cell, trackers: dict[str, Tracker]) -> None:
    tracker = cell.config.tracker
    if tracker.name == "none":
        return
    key = digest([asdict(tracker), str(cell.study)])
    if key not in trackers:
        trackers[key] = open_tracker(tracker, cell.study)
    trackers[key].log_cell(read_cell(cell.folder), asdict(cell.config))


def print_outcomes(report: Report, cells: Sequence[Cell], console: Console) -> None:
    states = {outcome.folder: outcome.state for outcome in report.outcomes}
    counts = ", ".join(f"{list(states.values()).count(state)} {state}" for state in ("done", "skipped", "failed"))
    where = ", ".join(str(study) for study in dict.fromkeys(cell.study for cell in cells))
    console.print(f"{len(states)} cells: {counts}; in {where}", markup=False, highlight=False, soft_wrap=True)
    for folder, outcome in {
        outcome.folder: outcome for outcome in report.outcomes if outcome.state == "failed"
    }.items():
        console.print(f"failed: {folder}: {outcome.error}", markup=False, highlight=False, soft_wrap=True)


def run_then(cells: Sequence[Cell], console: Console, trackers: dict[str, Tracker]) -> None:
    """Tables and figures of every study, as its configs ask. What goes wrong here is said, and costs no cell."""
    wanted = dict.fromkeys((cell.study, what) for cell in cells for what in cell.config.then)
    for study, what in wanted:
        try:
            import analysis

            if what == "table":
                analysis.print_table(study, console=console if console.is_terminal else None)
            else:
                files = analysis.write_figures(study)
                console.print("figures:", *map(str, files), sep="\n  ", markup=False, highlight=False, soft_wrap=True)
                for tracker in trackers.values():
                    tracker.log_figures([file for file in files if file.suffix == ".png"])
        except Exception as error:
            print(f"lynx-exp: warning: {what} of {study}: {type(error).__name__}: {error}", file=sys.stderr)


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, unless somebody handles it already, as submitit does in its jobs. Only the main
    thread may set handlers; elsewhere nothing changes."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
