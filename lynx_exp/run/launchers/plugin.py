"""Hydra plugins: the search path of `sweeps/`, a sweeper with sub-grids, a launcher that runs all cells here.

Registered by `run.launchers.register`, not by a `hydra_plugins` folder, so that they exist only inside `lynx-exp`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from lynx_exp.config import MOST_PLAN_SEEDS, Config, ModelConfig, at_least, config_folder, refuse_unknown
from lynx_exp.extensions import extended
from lynx_exp.run.launchers.published import PATH as PUBLISHED
from lynx_exp.run.sweeper.compose import Composer
from lynx_exp.run.sweeper.grids import MAX_CELLS, check_count, job_grids
from lynx_exp.run.sweeper.model_numbers import Shape
from lynx_exp.run.sweeper.raw_arguments import refuse_folder
from lynx_exp.run.sweeper.scales import AUTO, PAPER, Study, at_scale, by_model

if TYPE_CHECKING:
    from lynx_exp.run.outcomes import Report

PLUGIN_MODULE = "hydra_plugins.lynx"
"""Hydra takes launchers and sweepers only by an importable name below `hydra_plugins`: `register` makes this one."""


def check_hydra(hydra: DictConfig) -> None:
    """ValueError for a field of the `hydra` node that is unknown, or that would have no effect."""
    refuse_unknown(hydra, "hydra.")
    usual = {"run.dir": ".", "sweep.dir": ".", "sweep.subdir": ".", "output_subdir": None, "job.chdir": False}
    for name, value in usual.items():
        found = OmegaConf.select(hydra, name)
        if found != value:
            refuse_folder(f"hydra.{name}={found}")


def check_scale_of_a_cell(hydra: DictConfig) -> None:
    """ValueError for a scale where there is one cell, which is what was typed."""
    if hydra.sweeper.scale.name == PAPER:
        raise ValueError("scale=paper: is for a study, such as +paper=table2; of a single cell give the fields")


def plan_seeds(number: int, study: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The sweep over batch plans that `plan_seeds=number` stands for. A study that has plan seeds of its own, or an
    argument that gives them, goes without. ValueError if both are asked for."""
    at_least("plan_seeds", number, 1, most=MOST_PLAN_SEEDS)
    typed = [word.partition("=")[0].lstrip("+") for word in arguments]
    if "plan_seed" in typed:
        if "plan_seeds" in typed and number > 1:
            raise ValueError(f"plan_seeds={number}: stands for plan_seed=0 to {number - 1}; give one of the two")
        return []
    # who names plan_seed has said which plans there are; a study's plan_seeds then stands back
    named = any(word.startswith("plan_seed=") for words in study for word in words.split())
    return [] if number <= 1 or named else [f"plan_seed={','.join(map(str, range(number)))}"]


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
        scale: Mapping[str, Any] | None = None,
        scales: Mapping[str, Mapping[str, Any]] | None = None,
        max_cells: int = MAX_CELLS,
        **unknown: object,  # refused in `setup`, in the words of `check_hydra`
    ) -> None:
        self.params = {key: str(value) for key, value in (params or {}).items()}
        self.scale, self.scales, self.max_cells = scale or {}, scales or {}, max_cells
        self.cells, self.controls, self.studies = list(cells or []), list(controls or []), list(studies or [])

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        check_hydra(config.hydra)
        at_least("hydra.sweeper.max_cells", self.max_cells, 1)
        self.hydra_context = hydra_context
        self.config = config
        self._shapes: dict[str, Shape] = {}
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> object:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs: list[list[str]] = []
        notes: dict[str, None] = {}
        for words in by_model(arguments, parser) if self.studies or self.scales else [arguments]:
            for study, controls in self._studies(words):
                params = [f"{key}={value}" for key, value in study.params.items()]
                params += plan_seeds(study.plan_seeds, [*params, *study.cells], study.arguments)
                given = list(study.arguments)
                jobs += job_grids(*(params, study.cells, given, parser, controls, self._shape_of, self.max_cells))
                check_count(len(jobs), self.max_cells)
                notes |= dict.fromkeys(study.notes)
        if not jobs:
            raise ValueError("this sweep has no cell: one of its fields has no value (glob(...) is for groups alone)")
        for note in notes:
            Console(emoji=False, stderr=True, soft_wrap=True).print(f"note: {note}", markup=False, highlight=False)
        return self.launcher.launch(jobs, initial_job_idx=0)

    def _studies(self, arguments: list[str]) -> Iterator[tuple[Study, list[str]]]:
        """What this sweep is, with its controls; or each of `studies`, its file in place of the one that names it in
        the arguments."""
        if not self.studies:
            assert self.config is not None, "set up"
            yield self._at_scale(self, arguments, self._load(arguments) if self.scales else self.config), self.controls
            return
        groups = {study.partition("=")[0] for study in self.studies}
        others = [word for word in arguments if word.partition("=")[0].lstrip("+") not in groups]
        for name in self.studies:
            given = [f"+{name}", *others]
            config = self._load(given)
            found = config.hydra.sweeper
            own = LynxSweeper(found.params, found.cells, found.controls, scale=found.scale, scales=found.scales)
            yield self._at_scale(own, given, config), [*own.controls, *self.controls]

    def _at_scale(self, own: LynxSweeper, arguments: list[str], config: DictConfig) -> Study:
        """`own`, composed as `config`, at the scale that is asked for or fits the model."""
        from lynx_exp.run.model_facts import context_of

        study = Study(params=own.params, cells=own.cells, plan_seeds=config.plan_seeds, arguments=arguments)
        scale_name = str(own.scale.get("name", AUTO))
        # read only where a scale goes by it: a sweep over model.id alone composes without one
        model = OmegaConf.to_object(config.model) if own.scales else None
        assert model is None or isinstance(model, ModelConfig)

        def common(name: str) -> dict[str, Any]:
            words = [word for word in arguments if word.partition("=")[0].lstrip("+") != "scale"]
            return dict(self._load([*words, f"scale={name}"]).hydra.sweeper.scale.params)

        return at_scale(
            study, scale_name, own.scales, model, common=common, context=lambda: context_of(model) if model else None
        )

    def _load(self, arguments: list[str]) -> DictConfig:
        return self.hydra_context.config_loader.load_configuration("config", arguments, run_mode=RunMode.MULTIRUN)

    def _shape_of(self, overrides: list[str]) -> Shape:
        from lynx_exp.run.model_facts import known_facts

        assert self.config is not None, "set up"
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        model = OmegaConf.to_object(config.model)
        assert isinstance(model, ModelConfig)
        key = str(model)
        if key not in self._shapes:
            self._shapes[key] = known_facts(model, plan=bool(config.plan))
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
        loader = self.hydra_context.config_loader
        composer = Composer(self._compose, loader, OverridesParser.create(config_loader=loader))
        with Console(emoji=False, stderr=True).status(
            f"composing {len(job_overrides)} cells"
        ):  # seen on a terminal only
            configs = [composer.config(words) for words in job_overrides]
        report = LynxLauncher.report = self.run(configs)
        returns = []
        for overrides, outcome in zip(job_overrides, report.outcomes, strict=True):
            failed = outcome.state == "failed"
            status = JobStatus.FAILED if failed else JobStatus.COMPLETED
            # Hydra raises the first such value only when it is asked for: the other jobs are done all the same
            value = RuntimeError(outcome.error) if failed else outcome
            returns.append(JobReturn(overrides=overrides, status=status, _return_value=value))
        return returns

    def run(self, configs: list[Config]) -> Report:
        """Where and how: here, in packs. Other launchers do otherwise."""
        from lynx_exp.run.run_cells import run_cells

        return run_cells(configs, packed=self.packed)

    def _compose(self, overrides: list[str]) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            del config["hydra"]
        return config


class SweepsSearchPath(SearchPathPlugin):
    """Lets `+study=demo` find `sweeps/study/demo.yaml`, and every group what extensions add to it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("lynx-sweeps", f"file://{config_folder('sweeps')}")
        search_path.append("lynx-published", PUBLISHED)
        for part in ("conf", "sweeps"):
            for folder in extended(part):
                search_path.append("lynx-extension", f"file://{folder}")


@dataclass
class LauncherConf:
    """Runs all cells in this process."""

    _target_: str = f"{PLUGIN_MODULE}.LynxLauncher"
    packed: bool = True
    """Cells that differ in policy, phases or batch size only are decoded side by side, with the same results."""


@dataclass
class ScaleConf:
    """At which size a study is run (conf/scale)."""

    name: str = AUTO
    """Which: laptop, a study's file as it stands; paper, with what it says of that; auto, what fits the model."""
    params: dict[str, Any] = field(default_factory=dict)
    """What all studies have in common at that scale: fields and their values, unless the study says otherwise."""


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
    scale: ScaleConf = field(default_factory=ScaleConf)
    """What all studies have in common at the scale that was chosen."""
    scales: dict[str, Any] = field(default_factory=dict)
    """By scale, what this study is then: params by name, cells as a whole, and instruct."""
    max_cells: int = MAX_CELLS
    """A sweep of more is refused before any of its cells is made: a slip of the keyboard rather than a plan."""
