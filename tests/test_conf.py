"""Every YAML in conf/ and sweeps/ composes into checked configs, and says what the code says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from yaml import safe_load

from analysis.figures import NAMES
from lynx_exp.config import Config, MeasureConfig, ModelConfig, TaskConfig, TrackerConfig, config_folder, to_config
from lynx_exp.prepare.command_line import read_recipe
from lynx_exp.prepare.train import TrainConfig
from lynx_exp.routing import ModelShape, build_policy, layer_range, policy_names
from lynx_exp.run.launchers.register import register
from lynx_exp.run.model_facts import inspect_model
from lynx_exp.run.planned_cell import Cell
from lynx_exp.run.sweeper.compose import Composer
from lynx_exp.run.sweeper.grids import job_grids
from lynx_exp.run.sweeper.scales import Change
from lynx_exp.store.identity import Ids
from lynx_exp.tasks import known_tasks
from lynx_exp.tasks.definition import find_definition, members_of

CONF, SWEEPS = config_folder(), config_folder("sweeps")
GROUPS = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
STUDIES = sorted(path.relative_to(SWEEPS) for path in SWEEPS.rglob("*.yaml"))


MISSING = {("model", "hub"): ["model.id=some/model"], ("task", "custom"): ["task.subtasks=[arc_easy]"]}
"""What a choice leaves to its user."""


@pytest.fixture(autouse=True)
def composer() -> Iterator[None]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str, whole: bool = False) -> DictConfig:
    return compose("config", overrides=list(overrides), return_hydra_config=whole)


@pytest.mark.parametrize("path", GROUPS, ids=str)
def test_every_choice_composes(path):
    group, name = path.parts[0], path.stem
    more = MISSING.get((group, name), []) + (["plan=true"] if group == "hardware" else [])
    config = to_config(composed(f"{group}={name}", *more))
    if group == "scale":  # of a sweep, not of a cell
        assert composed(f"scale={name}", whole=True).hydra.sweeper.scale.name == name
        return
    chosen = getattr(config, group)
    named = chosen["name"] if isinstance(chosen, dict) else getattr(chosen, "name", None)
    assert named in (None, name), "a choice's name is its file's name"


@pytest.mark.parametrize("path", STUDIES, ids=str)
def test_what_a_sweep_says_of_a_scale_is_known(path):
    for name, said in composed(f"+{path.parts[0]}={path.stem}", whole=True).hydra.sweeper.scales.items():
        change = Change.of(name, said)
        config = to_config(composed(*(f"{key}={str(value).partition(',')[0]}" for key, value in change.params.items())))
        assert config.task.size, "a plan is to know its documents before they are here"
        assert path.parts[0] != "paper" or "mini_" not in str(change.params["task"])


@pytest.mark.parametrize("path", STUDIES, ids=str)
def test_every_sweep_composes_all_its_jobs(path):
    header = (SWEEPS / path).read_text()
    assert all(word in header for word in ("# Command", "# Cost", "# Expect"))
    argument = f"+{path.parts[0]}={path.stem}"
    sweeper = composed(argument, whole=True).hydra.sweeper
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    if path.parts[0] == "paper" or path.stem in ("weights", "phases"):  # hundreds, which differ in task and batch size
        params = [word.partition(",")[0] for word in params]
    shape = SHAPES["lynx_tiny"]
    parser, controls = OverridesParser.create(), list(sweeper.controls)
    jobs = job_grids(params, list(sweeper.cells), [argument], parser, controls, lambda overrides: shape)
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    # as a sweep composes its jobs, which tests/run/test_compose.py holds to Hydra; the last one by Hydra as well
    fast = Composer(lambda words: composed(*words), hydra.config_loader, OverridesParser.create(hydra.config_loader))
    configs = [fast.config(job) for job in jobs]
    assert repr(configs[-1]) == repr(to_config(composed(*jobs[-1])))
    assert len({str(config) for config in configs}) == len(configs), "no two jobs are the same"
    named = {"paper": "paper"}.get(path.parts[0], path.stem)
    for config in configs:
        build_policy("vanilla" if config.is_untouched else config.policy_name, **config.policy_params)
        assert set(config.task.subtasks) <= set(known_tasks())
        assert config.study_name == named or path.parts[0] in ("cluster", "control")


SHAPES = {
    "lynx_tiny": ModelShape(num_experts=16, top_k=2, num_layers=4),
    "mixtral_8x7b": ModelShape(num_experts=8, top_k=2, num_layers=32),
    "qwen3_30b_a3b": ModelShape(num_experts=128, top_k=8, num_layers=48),
    "dbrx_base": ModelShape(num_experts=16, top_k=4, num_layers=40),
}
PAPER = sorted(path.stem for path in SWEEPS.glob("paper/*.yaml"))


@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("study", [name for name in PAPER if name != "all"])
def test_the_papers_studies_fit_any_model(study, model):
    """Every policy of every job can run on it, in the layers that the job names."""
    shape = SHAPES[model]
    sweeper = composed(f"+paper={study}", whole=True).hydra.sweeper
    jobs = job_grids([], list(sweeper.cells), [f"+paper={study}"], OverridesParser.create(), [], lambda words: shape)
    assert len({tuple(job) for job in jobs}) == len(jobs)
    for _, *words in jobs:
        given = dict(word.split("=", 1) for word in words)
        params = safe_load((CONF / "policy" / f"{given['policy']}.yaml").read_text())
        params |= {key[7:]: safe_load(value) for key, value in given.items() if key.startswith("policy.")}
        if params.pop("name") != "vanilla":
            params.pop("match_active", None)
            build_policy(given["policy"], **params).check(shape)
        if "layers" in given:
            assert 0 < len(layer_range(given["layers"].strip("'"), shape.num_layers)) <= shape.num_layers


def test_all_of_the_paper_is_all_of_it():
    studies = composed("+paper=all", whole=True).hydra.sweeper.studies
    assert sorted(study.partition("=")[2] for study in studies) == [name for name in PAPER if name != "all"]
    assert set(PAPER) - {"all"} < {*NAMES}, "a study is named after its figure"


def test_the_demo_is_the_grid_that_its_readers_expect():
    sweeper = composed("+study=demo", whole=True).hydra.sweeper
    params = [f"{key}={value}" for key, value in sweeper.params.items()]
    jobs = job_grids(params, list(sweeper.cells), ["+study=demo"], OverridesParser.create())
    assert len(jobs) == 4 * 2 * 7


@pytest.mark.parametrize("name", policy_names())
def test_policy_files_hold_the_policys_own_defaults(name):
    config = to_config(composed(f"policy={name}"))
    policy = build_policy(name)
    assert config.policy_params == {field.name: getattr(policy, field.name) for field in fields(policy) if field.init}
    text = (CONF / "policy" / f"{name}.yaml").read_text()
    if policy.knob is None:
        assert "match_active" not in text or name == "vanilla"
    else:
        turned = to_config(composed(f"policy={name}", "policy.match_active=5"))
        assert f" sets {policy.knob.parameter} so" in text and turned.match_active == 5
        assert "match_active=5" in turned.policy_label and f"{policy.knob.parameter}=" not in turned.policy_label


def test_task_files_name_tasks_that_have_a_definition():
    used = [
        subtask
        for path in CONF.glob("task/*.yaml")
        if path.stem not in ("custom", "mix")
        for subtask in to_config(composed(f"task={path.stem}")).task.subtasks
    ]
    assert set(known_tasks()) <= set(used)
    for name in used:
        for member in members_of(name):  # of a group, as mmlu is
            assert find_definition(member).is_file()


def test_config_yaml_holds_the_schemas_defaults():
    config = to_config(composed())
    for f in fields(Config):
        if f.name not in ("model", "policy", "task", "tracker", "measure"):
            assert getattr(config, f.name) == (f.default_factory() if callable(f.default_factory) else f.default), (
                f.name
            )
    assert config.measure == MeasureConfig()


def test_train_yaml_is_the_recipe_in_the_code():
    recipe, out = read_recipe([])
    assert recipe == TrainConfig() and out == Path("runs/lynx_tiny")


def test_the_random_preset_is_an_moe_that_any_policy_fits():
    facts = inspect_model(to_config(composed("model=random")).model)
    assert (facts.num_experts, facts.top_k, facts.num_layers) == (16, 2, 4)
    for name in policy_names():
        build_policy(name).check(ModelShape(num_experts=facts.num_experts, top_k=facts.top_k))


def test_folders_of_cells_are_plain_names(tmp_path):
    config = Config(
        model=ModelConfig(kind="hub", id="some/Model-8x7B"),
        policy={"name": "lynx", "alpha": 0.7, "beta": 1, "min_batch": 2},
        task=TaskConfig(name="t", subtasks=["t"]),
        tracker=TrackerConfig(),
        results=str(tmp_path),
    )
    facts = type("Facts", (), {"name": "some/Model-8x7B"})()
    cell = Cell(
        config=config,
        policy=None,
        model=facts,
        tasks=(),
        ids=Ids("a" * 64, "b" * 64, "c" * 64),
        dtype="x",
        device="cpu",
    )
    assert cell.folder == tmp_path / "default" / f"Model_8x7B-t-lynx_alpha_0.7_beta_1-b16-{'a' * 10}"


def test_vanilla_has_one_name_whatever_a_sweep_sets_of_its_policies():
    """A sweep over `policy.weights` sets them for vanilla, too: one cell, one folder."""
    names = {
        to_config(composed("policy=vanilla", f"policy.weights={weights}")).policy_label
        for weights in ("original", "mass")
    }
    assert names == {"vanilla"}
