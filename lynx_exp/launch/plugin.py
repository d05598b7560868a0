"""Hydra plugins: the search path of `sweeps/`, a sweeper with sub-grids, a launcher that runs all cells here.

Registered by `register()`, not by a `hydra_plugins` folder, so that they exist only inside `lynx-exp`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from lynx_exp.config import Config, ModelConfig, config_folder, refuse_unknown, to_config
from lynx_exp.launch.arguments import refuse_folder
from lynx_exp.launch.of_model import Shape, asks_for_the_model, filled

if TYPE_CHECKING:
    from lynx_exp.launch.outcomes import Report

PLUGIN_MODULE = "hydra_plugins.lynx"
"""Hydra takes launchers and sweepers only by an importable name below `hydra_plugins`: `register` makes this one."""


def grid(words: Sequence[str], parser: OverridesParser) -> list[list[str]]:
    """All combinations of the overrides `words`; of two on one key the later counts. ValueError for endless sweeps."""
    choices: dict[str, list[str]] = {}
    for override in parser.parse_overrides(list(words)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}" if "~" not in key else key]
        elif override.is_discrete_sweep():
            choices[key] = list(dict.fromkeys(f"{key}={value}" for value in override.sweep_string_iterator()))
        else:
            raise ValueError(f"{override.input_line}: not a finite sweep; give a list (1,2,3) or range(1,4)")
    return [list(job) for job in product(*choices.values())]


def job_grids(
    params: Sequence[str],
    cells: Sequence[str],
    arguments: Sequence[str],
    parser: OverridesParser,
    controls: Sequence[str] = (),
    shape_of: Callable[[list[str]], Shape] | None = None,
) -> list[list[str]]:
    """The overrides of every job: `params` (crossed) x the union of `cells` (each a crossed grid); `arguments` win.

    `shape_of` gives the model of a job without its cell, for cells that hold numbers of the model (`of_model`).

    An argument on a key takes that key, and everything below it, out of every cell; a control takes its keys out of
    everything else, and is run once for what is left.
    """
    typed = {override.get_key_element().lstrip("+~") for override in parser.parse_overrides(list(arguments))}

    def overridden(word: str) -> bool:
        key = word.partition("=")[0].lstrip("+~")
        return any(key == name or key.startswith(f"{name}.") for name in typed)

    unions = list(dict.fromkeys(tuple(word for word in cell.split() if not overridden(word)) for cell in cells)) or [()]
    shared = [*arguments, *(word for word in params if not overridden(word))]

    def of(base: list[str], cell: Sequence[str]) -> Sequence[str]:
        if shape_of is None or not asks_for_the_model(cell):
            return cell
        shape = shape_of(base)
        return [filled(word, shape) for word in cell]

    jobs = [[*base, *own] for base in grid(shared, parser) for cell in unions for own in grid(of(base, cell), parser)]
    for control in controls:
        keys = [word.partition("=")[0] for word in control.split()]

        def replaced(word: str, keys: Sequence[str] = keys) -> bool:
            key = word.partition("=")[0].lstrip("+~")
            return any(key == name or key.startswith(f"{name}.") for name in keys)

        left = [tuple(word for word in job if not replaced(word)) for job in jobs]
        jobs += [[*job, *control.split()] for job in dict.fromkeys(left)]
    return jobs


def check_hydra(hydra: Any) -> None:
    """ValueError for a field of the `hydra` node that is unknown, or that would have no effect."""
    refuse_unknown(hydra, "hydra.")
    usual = {"run.dir": ".", "sweep.dir": ".", "sweep.subdir": ".", "output_subdir": None, "job.chdir": False}
    for name, value in usual.items():
        found = OmegaConf.select(hydra, name)
        if found != value:
            refuse_folder(f"hydra.{name}={found}")


class LynxSweeper(Sweeper):
    """Hydra's basic sweeper, and `hydra.sweeper.cells`: a union of small grids, crossed with `hydra.sweeper.params`;
    `hydra.sweeper.controls` stand beside all of them. Or `hydra.sweeper.studies`: other files of `sweeps/`, all of
    their jobs as one multirun."""

    hydra_context: HydraContext
    launcher: Launcher

    def __init__(
        self,
        params: dict[str, str] | None = None,
        cells: Sequence[str] | None = None,
        controls: Sequence[str] | None = None,
        studies: Sequence[str] | None = None,
        **unknown: Any,  # refused in `setup`, in the words of `check_hydra`
    ) -> None:
        self.params = [f"{key}={value}" for key, value in (params or {}).items()]
        self.cells, self.controls, self.studies = list(cells or []), list(controls or []), list(studies or [])

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        check_hydra(config.hydra)
        self.hydra_context = hydra_context
        self.config = config
        self._shapes: dict[str, Shape] = {}
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs = [
            job
            for sweeper, given in self._sweepers(arguments)
            for job in job_grids(sweeper.params, sweeper.cells, given, parser, sweeper.controls, self._shape_of)
        ]
        return self.launcher.launch(jobs, initial_job_idx=0)

    def _sweepers(self, arguments: list[str]) -> Iterator[tuple[LynxSweeper, list[str]]]:
        """This one; or one for each of `studies`, its file in place of the one that names it in the arguments."""
        if not self.studies:
            yield self, arguments
            return
        groups = {study.partition("=")[0] for study in self.studies}
        others = [word for word in arguments if word.partition("=")[0].lstrip("+") not in groups]
        for study in self.studies:
            given = [f"+{study}", *others]
            load = self.hydra_context.config_loader.load_configuration
            found = load("config", given, run_mode=RunMode.MULTIRUN).hydra.sweeper
            yield LynxSweeper(found.params, found.cells, [*found.controls, *self.controls]), given

    def _shape_of(self, overrides: list[str]) -> Shape:
        from lynx_exp.launch.model import inspect_model

        assert self.config is not None, "set up"
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        model = OmegaConf.to_object(config.model)
        assert isinstance(model, ModelConfig)
        key = str(model)
        if key not in self._shapes:
            self._shapes[key] = inspect_model(model)
        return self._shapes[key]


class LynxLauncher(Launcher):
    """Composes and checks all jobs, then runs them, the model loaded once; a failed cell does not stop the others."""

    report: ClassVar[Report | None] = None
    """Of the latest launch: Hydra keeps what a multirun returns to itself."""

    def __init__(self, packed: bool = True) -> None:
        self.packed = packed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        with Console(stderr=True).status(f"composing {len(job_overrides)} cells"):  # seen on a terminal only
            composed = [self._compose(list(words), initial_job_idx + i) for i, words in enumerate(job_overrides)]
        report = LynxLauncher.report = self.run([to_config(config) for config in composed])
        returns = []
        for overrides, config, outcome in zip(job_overrides, composed, report.outcomes, strict=True):
            failed = outcome.state == "failed"
            status = JobStatus.FAILED if failed else JobStatus.COMPLETED
            value = RuntimeError(outcome.error) if failed else outcome
            returns.append(JobReturn(overrides=overrides, cfg=config, status=status, _return_value=value))
        return returns

    def run(self, configs: list[Config]) -> Report:
        """Where and how: here, in packs. Other launchers do otherwise."""
        from lynx_exp.launch.run import run_cells

        return run_cells(configs, packed=self.packed)

    def _compose(self, overrides: list[str], number: int) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
            del config["hydra"]
        return config


class SweepsSearchPath(SearchPathPlugin):
    """Lets `+study=demo` find `sweeps/study/demo.yaml`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("lynx-sweeps", f"file://{config_folder('sweeps')}")


@dataclass
class LauncherConf:
    """Runs all cells in this process."""

    _target_: str = f"{PLUGIN_MODULE}.LynxLauncher"
    packed: bool = True
    """Cells that differ in policy, phases or batch size only are decoded side by side, with the same results."""


@dataclass
class SweeperConf:
    _target_: str = f"{PLUGIN_MODULE}.LynxSweeper"
    params: dict[str, str] | None = None
    """As in Hydra's own sweeper."""
    cells: list[str] = field(default_factory=list)
    """Each a grid in one string: `policy=lynx policy.alpha=1.0,3.0`."""
    controls: list[str] = field(default_factory=list)
    """Each one cell in one string, run for whatever else varies: `policy=noise_floor`."""
    studies: list[str] = field(default_factory=list)
    """Other files of `sweeps/`, such as `paper=fig7`, to be run as one multirun."""


def register() -> None:
    """Make the schema and the plugins known to Hydra. Harmless when called again."""
    from lynx_exp.launch.on_ray import RayConf, RayLauncher  # launchers are made of this module's
    from lynx_exp.launch.slurm import SlurmConf, SlurmLauncher

    store = ConfigStore.instance()
    store.store(name="schema", node=Config, provider="lynx")
    store.store(group="hydra/launcher", name="packed", node=LauncherConf, provider="lynx")
    store.store(group="hydra/launcher", name="one_by_one", node=LauncherConf(packed=False), provider="lynx")
    for conf_name, conf in (("slurm", SlurmConf), ("ray", RayConf)):
        # conf/config.yaml says hydra/launcher=packed, which a file of sweeps/cluster cannot override, only extend
        for group in ("hydra/launcher", "hydra/cluster"):
            store.store(group=group, name=conf_name, node=conf, provider="lynx")
    store.store(group="hydra/sweeper", name="lynx", node=SweeperConf, provider="lynx")
    package, _, name = PLUGIN_MODULE.rpartition(".")
    try:
        parent = import_module(package)  # other plugins may be installed there
    except ImportError:
        parent = sys.modules[package] = ModuleType(package)
        parent.__path__ = []  # Hydra walks the package
    module = sys.modules[PLUGIN_MODULE] = ModuleType(PLUGIN_MODULE)
    setattr(parent, name, module)
    launchers = (LynxLauncher, SlurmLauncher, RayLauncher)
    for cls in (*launchers, LynxSweeper):
        cls.__module__ = PLUGIN_MODULE
        setattr(module, cls.__name__, cls)
    for plugin in (SweepsSearchPath, *launchers, LynxSweeper):
        Plugins.instance().register(plugin)
