"""The fast composition of a sweep's jobs gives what Hydra gives for each of them, errors too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from lynx_exp.config import Config, config_folder, to_config
from lynx_exp.run.launchers.register import register
from lynx_exp.run.sweeper.compose import Composer
from lynx_exp.run.sweeper.grids import grid


@pytest.fixture(scope="module", autouse=True)
def composer() -> Iterator[None]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def load(words: list[str]) -> DictConfig:
    return compose("config", overrides=words)


def new_composer() -> Composer:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return Composer(load, hydra.config_loader, OverridesParser.create(config_loader=hydra.config_loader))


def outcome(make: object, words: list[str]) -> Config | str:
    """The config, or what the user is told."""
    try:
        config = make(words)  # type: ignore[operator]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    assert isinstance(config, Config)
    return config


VALUES = ["1", "4", "0", "-1", "true", "null", "0.5", "1e-3", "inf", "nan", "lynx", "'4'", "[1,2]", "{a: 1}", "???"]
VALUES += ["decode", "cpu", "${seed}", "9" * 30, "'a b'", "0x10", "1_000", "-0", "''", "mini_wmt16"]
KEYS = ["batch_size", "seed", "limit", "phases", "layers", "measure.latency", "measure.precision", "pack.memory_gib"]
KEYS += ["policy.alpha", "policy.min_batch", "policy.k", "model.id", "model.seed", "model.config", "+model.config.a"]
KEYS += [
    "task.num_fewshot",
    "task.generation.until",
    "task.generation.temperature",
    "task.name",
    "study_name",
    "first",
    "then",
]
KEYS += ["tracker.tags", "threads", "nonsense", "+nonsense", "++seed", "~seed", "measure", "task.subtasks"]
CHOICES = [
    "policy=lynx",
    "policy=top_k",
    "policy=coverage",
    "policy=nobody",
    "model=random",
    "model=hub",
    "model=mixtral_8x7b",
    "task=custom",
]
CHOICES += [
    "task=mini_wmt16",
    "tracker=wandb",
    "+study=demo",
    "+control=noise_floor",
    "+cluster=slurm",
    "task@task=mix",
]
CHOICES += ["~policy", "policy=null", "hydra/launcher=one_by_one"]
WORDS = st.one_of(st.sampled_from(CHOICES), st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(VALUES)))


def agree(jobs: list[list[str]]) -> None:
    fast = new_composer()
    for words in jobs:
        expected, found = outcome(lambda words: to_config(load(words)), words), outcome(fast.config, words)
        # repr tells 1 from 1.0 and from True
        assert repr(found) == repr(expected), words


@settings(max_examples=6)
@given(st.lists(st.lists(WORDS, max_size=4), min_size=1, max_size=4))
def test_random_overrides_give_what_hydra_gives(jobs):
    agree(jobs)


@pytest.mark.slow
@settings(max_examples=600)
@given(st.lists(st.lists(WORDS, max_size=6), min_size=1, max_size=8))
def test_many_random_overrides_give_what_hydra_gives(jobs):
    agree(jobs)


GRIDS = [
    ["model=hub", "model.id=a,b", "seed=1,'2'", "policy=lynx", "policy.alpha=1,2.0"],
    ["model=random", "model.config={num_hidden_layers:2}", "+model.config.head_dim=4,8", "seed=0,1"],
    ["policy=top_k", "policy.k=1,[1,2,1,1]", "layers=0,1:,null", "measure.latency=true"],
    ["task=custom", "task.subtasks=[a],[b,c]", "task.generation.temperature=0,0.5", "then=[table]"],
    ["+study=demo", "task.name=x,y", "study_name=a,b"],
    ["model=mixtral_8x7b,lynx_tiny", "policy=lynx,oea", "policy.min_batch=1,2"],
    ["model=lynx_tiny,mixtral_8x7b", "policy=lynx", "policy.alpha=3.0,4", "seed=0,1"],
]


@pytest.mark.parametrize("words", GRIDS, ids=" ".join)
def test_grids_give_what_hydra_gives(words):
    agree(grid(words, OverridesParser.create()))


def test_hydra_composes_one_job_and_the_schema():
    fast = new_composer()
    words = ["policy=vanilla,lynx,top_k", "policy.min_batch=1,2", "task=mini_gsm8k,mini_wmt16", "seed=range(0,500)"]
    jobs = grid(words, OverridesParser.create())
    configs = [fast.config(job) for job in jobs]
    assert len(configs) == 6000 and fast.composed == 2
    assert len({repr(config) for config in configs}) == 6000


def test_an_option_with_more_than_its_node_is_composed_each_time(tmp_path):
    """It reaches into another field: the task is not what the task's overrides alone make it."""
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "reaching.yaml").write_text(
        "# @package _global_\npolicy: {name: top_k, k: 1}\ntask: {num_fewshot: 2}\n"
    )
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    jobs = [["policy=lynx"], ["policy=reaching", "seed=1"], ["policy=lynx", "seed=2"], ["policy=reaching", "seed=3"]]
    path = f"hydra.searchpath=[file://{Path(tmp_path)}]"
    agree([[path, *job] for job in jobs])
    assert load([path, "policy=reaching"]).task.num_fewshot == 2


def test_what_else_sets_a_part_of_an_option_is_not_lost(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "partial.yaml").write_text("# @package _global_\npolicy: {min_batch: 5}\n")
    path = f"hydra.searchpath=[file://{Path(tmp_path)}]"
    choices = ("lynx", "coverage", "top_k", "lynx policy.alpha=1", "vanilla policy.alpha=1")
    jobs = [[*study, *f"policy={choice}".split()] for study in ([], ["+study=partial"]) for choice in choices]
    agree([[path, *job] for job in jobs])
    assert load([path, *jobs[-4]]).policy.min_batch == 5
