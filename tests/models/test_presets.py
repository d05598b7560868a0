"""Every preset of conf/model: its shape is the model's as far as is published, and a tiny model of its architecture has
the router that its first lines tell of, and runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from lynx_exp.config import config_folder
from lynx_exp.engine import Engine
from lynx_exp.engine.timing.step_bytes import step_bytes
from lynx_exp.engine.timing.weightless_bytes import weightless_bytes
from lynx_exp.models.tiny import EXPERTS, TOP_K, tiny_config, tiny_model
from lynx_exp.routing import ModelShape, build_policy
from lynx_exp.run.declared_shape import declared_config


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is published of a model, and how its routers score."""

    billions: float
    active: float | None
    """Billions of parameters that a token meets."""
    experts: int
    top_k: int
    layers: int
    """With routers."""
    score: str = "softmax"
    renormalize: bool = True
    bias: bool = False
    groups: bool = False


QWEN3_30B = Known(billions=30.5, active=3.3, experts=128, top_k=8, layers=48)
QWEN3_235B = Known(billions=235, active=22, experts=128, top_k=8, layers=94)
MIXTRAL = Known(billions=46.7, active=12.9, experts=8, top_k=2, layers=32)
DBRX = Known(billions=132, active=36, experts=16, top_k=4, layers=40)
KNOWN = {
    "dbrx_base": DBRX,
    "dbrx_instruct": DBRX,
    "deepseek_v2_lite": Known(billions=15.7, active=2.4, experts=64, top_k=6, layers=26, renormalize=False),
    "deepseek_v3_1": Known(
        billions=671, active=37, experts=256, top_k=8, layers=58, score="sigmoid", bias=True, groups=True
    ),
    "gemma_4_26b_a4b": Known(billions=25.2, active=3.8, experts=128, top_k=8, layers=30),
    "glm_4_7_flash": Known(billions=30, active=3, experts=64, top_k=4, layers=46, score="sigmoid", bias=True),
    "gpt_oss_120b": Known(billions=116.8, active=5.1, experts=128, top_k=4, layers=36),
    "gpt_oss_20b": Known(billions=20.9, active=3.6, experts=32, top_k=4, layers=24),
    "mixtral_8x22b_instruct": Known(billions=141, active=39, experts=8, top_k=2, layers=56),
    "mixtral_8x7b": MIXTRAL,
    "mixtral_8x7b_instruct": MIXTRAL,
    "olmoe_1b_7b": Known(billions=6.9, active=1.3, experts=64, top_k=8, layers=16, renormalize=False),
    "qwen3_235b_a22b": QWEN3_235B,
    "qwen3_235b_a22b_thinking_2507": QWEN3_235B,
    "qwen3_30b_a3b": QWEN3_30B,
    "qwen3_30b_a3b_instruct_2507": QWEN3_30B,
    "qwen3_30b_a3b_thinking_2507": QWEN3_30B,
    "qwen3_6_35b_a3b": Known(billions=35, active=3, experts=256, top_k=8, layers=40),
}
every_preset = pytest.mark.parametrize("name", KNOWN)


@cache
def preset(name: str) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(config_folder() / "model" / f"{name}.yaml"))
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]


def traits(shape: dict[str, Any]) -> dict[str, Any]:
    """What of a shape is no size: kept in the tiny model."""
    kept = {key: value for key, value in shape.items() if isinstance(value, bool | str | float | None) or value == 0}
    one_group = {key: 1 for key in ("n_group", "topk_group") if shape.get(key) == 1}
    return {key: value for key, value in (kept | one_group).items() if key != "model_type"}


@cache
def tiny(name: str) -> Engine:
    """Presets of one architecture share it."""
    shape = preset(name)["shape"]
    return _tiny(shape["model_type"], tuple(sorted(traits(shape).items())))


@cache
def _tiny(kind: str, fields: tuple[tuple[str, Any], ...]) -> Engine:
    return Engine(tiny_model(kind, **dict(fields)))


ARCHITECTURES = list(
    {(preset(name)["shape"]["model_type"], str(traits(preset(name)["shape"]))): name for name in KNOWN}.values()
)
"""One preset of those that have the same tiny model."""


def test_every_hub_preset_is_here() -> None:
    paths = (config_folder() / "model").glob("*.yaml")
    assert {path.stem for path in paths} - {"hub", "lynx_tiny", "random"} == KNOWN.keys()


@every_preset
def test_its_shape_has_the_parameters_that_are_published(name: str) -> None:
    known, config = KNOWN[name], declared_config(preset(name)["shape"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e9 == pytest.approx(known.billions, rel=0.01)
    table = model.get_input_embeddings().weight.numel()
    read = weightless_bytes(model, known.experts)
    assert read is not None and read.layers == known.layers
    assert 2 * count == pytest.approx(read.of(active=known.experts, rows=0, positions=0) + 2 * table, rel=0.01) or (
        config.get_text_config().tie_word_embeddings
    )
    active = read.of(active=known.top_k, rows=0, positions=0) / 2e9
    assert known.active is None or active == pytest.approx(known.active, rel=0.25)
    first = (config_folder() / "model" / f"{name}.yaml").read_text().partition("\n")[0]
    assert f"About {2 * count / 1e9:.0f} GB in bf16" in first
    assert f"{known.experts} experts" in first and f"top-{known.top_k}" in first


@every_preset
def test_its_routers_score_as_its_first_lines_say(name: str) -> None:
    known, engine = KNOWN[name], tiny(name)
    text = " ".join((config_folder() / "model" / f"{name}.yaml").read_text().split("\n# "))
    for router in engine.routers:
        rule = router.rule
        assert (router.num_experts, router.top_k) == (EXPERTS, TOP_K)
        assert (rule.score, rule.renormalize, rule.bias is not None) == (known.score, known.renormalize, known.bias)
        assert rule.grouped == known.groups
        assert rule.scaling == preset(name)["shape"].get("routed_scaling_factor", 1.0)
    assert f"Router: {known.score}" in text
    assert ("not renormalised" in text) == (not known.renormalize)
    assert ("correction bias, " in text) == known.bias


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_runs_vanilla_and_lynx(name: str) -> None:
    engine = tiny(name)
    prompts = [[5, 6, 7], [8, 9, 10, 11], [13], [20, 21]]
    lynx = build_policy("lynx", **preset(name).get("published", {}).get("lynx", {}))
    lynx.check(ModelShape(num_experts=EXPERTS, top_k=TOP_K, rule=engine.routers[0].rule))
    plain, under = (
        engine.generate(prompts, batch_size=4, max_new_tokens=3, policy=policy, ignore_eos=True)
        for policy in (None, lynx)
    )
    for run in (plain, under):
        assert [len(tokens) for tokens in run.token_ids] == [3] * 4
    assert plain.token_ids[0][0] == under.token_ids[0][0], "the first token is prefill's"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bytes_without_weights_are_those_with_them(name: str) -> None:
    engine, shape = tiny(name), preset(name)["shape"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(shape["model_type"], **traits(shape)), dtype=torch.float32)
    assert weightless_bytes(model, EXPERTS) == step_bytes(engine.model, engine.routers)


@every_preset
def test_what_is_published_for_it_builds(name: str) -> None:
    known = KNOWN[name]
    shape = ModelShape(num_experts=known.experts, top_k=known.top_k, num_layers=known.layers)
    for policy, parameters in preset(name).get("published", {}).items():
        defaults = OmegaConf.to_container(OmegaConf.load(config_folder() / "policy" / f"{policy}.yaml"))
        assert isinstance(defaults, dict) and parameters.keys() <= defaults.keys()
        built = build_policy(policy, **parameters)
        if "calibration" not in defaults:
            built.check(shape)


def test_the_papers_values_are_in_the_presets() -> None:
    """As Lynx's registry, OEA's and LExI's papers and XShare's pull request have them."""
    published = {name: preset(name).get("published", {}) for name in KNOWN}
    lynx = {name: (of["lynx"]["alpha"], of["lynx"]["beta"]) for name, of in published.items() if "lynx" in of}
    assert lynx == {
        "mixtral_8x7b": (0.7, 1),
        "mixtral_8x7b_instruct": (0.7, 1),
        "mixtral_8x22b_instruct": (1.0, 1),
        "qwen3_30b_a3b": (3.0, 2),
        "qwen3_30b_a3b_instruct_2507": (3.0, 2),
        "qwen3_30b_a3b_thinking_2507": (3.0, 2),
        "qwen3_235b_a22b": (3.0, 2),
        "qwen3_235b_a22b_thinking_2507": (1.0, 2),
        "gpt_oss_120b": (3.0, 2),
    }
    assert {name: of["oea"]["k0"] for name, of in published.items() if "oea" in of} == {
        "qwen3_30b_a3b": 3,
        "qwen3_235b_a22b": 5,
    }
    assert {name: of["xshare"]["budget"] for name, of in published.items() if "xshare" in of} == {
        "gpt_oss_20b": 12,
        "gpt_oss_120b": 24,
    }
    assert published["olmoe_1b_7b"] == {"lexi": {"mean_k": 6.25}}
