"""`model=random` in any family: the same sizes, whatever the family calls them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from lynx_exp import cli
from lynx_exp.config import ModelConfig, config_folder
from lynx_exp.config.choices import MODEL_SIZES
from lynx_exp.models.families import Family, families
from lynx_exp.models.family_sizes import SIZES, random_fields
from lynx_exp.models.load_model import random_model
from lynx_exp.models.odd_families.forms import REFUSED
from lynx_exp.models.routers import UnsupportedModel, find_routers
from lynx_exp.run.model_facts import inspect_model
from lynx_exp.store.read import read_cells

PRESET = OmegaConf.to_container(OmegaConf.load(config_folder() / "model/random.yaml"))
assert isinstance(PRESET, dict)
FAMILIES = families()


def of(family: Family, **sizes: int) -> ModelConfig:
    return ModelConfig(kind="random", id=family.model_types[0], sizes=PRESET["sizes"] | sizes)


def test_there_is_one_list_of_sizes() -> None:
    assert MODEL_SIZES == SIZES and set(PRESET["sizes"]) == set(SIZES)


def test_the_preset_configures_every_family() -> None:
    for family in FAMILIES:
        if family.model in ("DogeForCausalLM", "ZayaForCausalLM"):  # refused, and bound to numbers of their own
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rotary factors that fit the family's own lengths
            facts = inspect_model(of(family, experts=32, top_k=4, layers=6))
        assert (facts.num_experts, facts.top_k) == (32, 4), family
        assert facts.num_layers in (6, 0), family  # nemotron_h has no number of layers but a list
        assert facts.context in (1024, None), family


def test_other_sizes_are_another_model() -> None:
    mixtral = next(family for family in FAMILIES if str(family) == "mixtral")
    one, other = of(mixtral), of(mixtral, layers=5)
    assert inspect_model(one).digest != inspect_model(other).digest
    assert inspect_model(replace(one, config={"rms_norm_eps": 1e-6})).digest != inspect_model(one).digest


def test_without_sizes_the_fields_are_the_familys_own() -> None:
    assert random_fields("olmoe", {}, {"hidden_size": 32}) == {"hidden_size": 32}
    assert random_fields("olmoe", PRESET["sizes"], {"hidden_size": 32})["hidden_size"] == 32


@pytest.mark.parametrize("family", ["deepseek_v3"])
def test_a_run_of_another_family(family, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = [
        "model.sizes.hidden=32",
        "model.sizes.expert_hidden=16",
        "model.sizes.layers=2",
        "model.config.use_cache=true",
    ]
    words = [
        "model=random",
        f"model.id={family}",
        *small,
        "policy=lynx",
        "task=mini_truthfulqa",
        "limit=2",
        "batch_size=2",
    ]
    assert cli.run(words) == 0
    (cell,) = read_cells("results")
    assert cell.info["model"].startswith(f"{family} (random ")
    assert 2 <= cell.metrics["active_experts"] <= 16


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_every_family_can_be_made_of_it(family: Family) -> None:
    sizes = PRESET["sizes"] | {"hidden": 64, "expert_hidden": 32}
    try:
        fields = random_fields(family.model_types[0], sizes, {})
        built = random_model(family.model_types[0], fields, seed=0, dtype=torch.float32, device=torch.device("cpu"))
        routers = find_routers(built)
    except UnsupportedModel as error:
        assert any(reason in str(error) for reason in REFUSED.values())
        return
    assert {(router.num_experts, router.top_k) for router in routers} == {(16, 2)}
    with torch.no_grad():
        assert built(torch.arange(3, 15)[None]).logits.isfinite().all()
