"""A model that is not here: planned as its preset declares it, else refused; held against that once it is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoConfig

from lynx_exp.config import Config, ModelConfig, config_folder, default_parameters, to_config
from lynx_exp.run.launchers.register import register
from lynx_exp.run.model_facts import known_facts
from lynx_exp.run.published_parameters import published_lines
from lynx_exp.run.sweeper.raw_arguments import prepared
from lynx_exp.store.identity import cell_ids
from tests.run.fakes import TINY

SHAPE = {"model_type": "mixtral", **TINY}
MODEL = ModelConfig(kind="hub", id="no/where", shape=SHAPE, published={"lynx": {"alpha": 0.7, "beta": 1}})


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def policy_of(*words: str) -> dict[str, Any]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        found: dict[str, Any] = to_config(compose("config", overrides=list(words))).policy
    return found


def test_a_policy_that_is_chosen_has_what_is_published() -> None:
    mixtral = policy_of("model=mixtral_8x7b", "policy=lynx")
    assert (mixtral["alpha"], mixtral["beta"], mixtral["bins"]) == (0.7, 1, "ceil")
    given = policy_of("model=mixtral_8x7b", "policy=lynx", "policy.alpha=3.0")
    assert (given["alpha"], given["beta"]) == (3.0, 1), "the default's value too, where it is given"
    other = policy_of("model=deepseek_v3_1", "policy=lynx")
    assert (other["alpha"], other["beta"]) == (3.0, 2), "nothing is published: the package's"
    assert policy_of("policy=lynx", "model=gpt_oss_120b", "policy=xshare")["budget"] == 24
    assert policy_of("model=mixtral_8x7b")["name"] == "vanilla"


def test_a_preset_of_an_extension_publishes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lynx_exp import extensions

    (tmp_path / "mine/conf/model").mkdir(parents=True)
    preset = "kind: hub\nid: my/model\npublished:\n  oea: {k0: 4}\n"
    (tmp_path / "mine/conf/model/mine.yaml").write_text(preset)
    monkeypatch.setenv(extensions.VARIABLE, str(tmp_path / "mine"))
    extensions.extension_folders.cache_clear()
    try:
        assert policy_of("model=mine", "policy=oea")["k0"] == 4
    finally:
        extensions.extension_folders.cache_clear()


def test_published_values_are_not_given_on_the_command_line() -> None:
    with pytest.raises(ValueError, match="is for presets to say; for this run give policy.PARAMETER=VALUE"):
        prepared(["model.published.lynx.alpha=1"])


def test_a_cell_is_what_its_values_are_wherever_they_come_from(config: Callable[..., Config]) -> None:
    from dataclasses import asdict

    def ids(model: ModelConfig) -> object:
        fields = asdict(config({"name": "lynx", "alpha": 0.7, "beta": 1}, model=model))
        return cell_ids(fields, model_digest="m", data_digests={}, code="c")

    assert ids(MODEL) == ids(replace(MODEL, published={}, shape={}))


def test_it_is_planned_and_not_run(bench: Any, config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=r"^model.id=no/where: .*lynx-prepare prefetch` with the same arguments"):
        bench.run([config(model=MODEL)])
    assert bench.engine.opened == 0
    lynx = {"name": "lynx", "alpha": 0.7, "beta": 1, "bins": "ceil", "min_batch": 2}
    bench.run([config(policy, model=MODEL, plan=True) for policy in ({"name": "vanilla"}, lynx)])
    text = bench.text()
    assert "2 cells: 0 done, 2 to run" in text and "memory: no/where in float32: weights 5.57 GiB" in text
    assert (
        "to download: the weights of no/where, which are not in the hub's cache (its size above is by the shape "
        in text
    )
    assert "that its preset declares); `lynx-prepare prefetch`" in text
    assert "policy lynx on no/where: alpha=0.7, beta=1 as published for it" in text
    with pytest.raises(ValueError, match=r"^model.id=no/where: "):
        bench.run([config(model=replace(MODEL, shape={}), plan=True)])


def test_a_plan_says_where_parameters_come_from() -> None:
    from types import SimpleNamespace

    def said(model: ModelConfig, **parameters: Any) -> list[str]:
        found = SimpleNamespace(
            model=model,
            is_untouched=False,
            match_active=None,
            policy_name="lynx",
            policy_params=parameters,
            policy={"match_active": None},
        )
        return list(published_lines([SimpleNamespace(config=found, model=SimpleNamespace(name="M"))]))  # type: ignore[list-item]

    default = default_parameters("lynx")
    assert default is not None
    bare = replace(MODEL, published={})
    assert said(MODEL, **default | {"alpha": 0.7, "beta": 1}) == [
        "policy lynx on M: alpha=0.7, beta=1 as published for it"
    ]
    assert said(MODEL, **default)[0].endswith("alpha=0.7, beta=1 is published for it, and not among these cells")
    words = "alpha=3, beta=2, bins=ceil, the package's default; nothing is published for this model"
    assert said(bare, **default) == [f"policy lynx on M: {words}"]
    assert said(bare, **default | {"alpha": 5.0}) == [], "somebody chose it"


def saved(folder: Path, **changes: Any) -> str:
    folder.mkdir()
    fields = dict(TINY) | changes
    (folder / "config.json").write_text(json.dumps(AutoConfig.for_model("mixtral", **fields).to_dict(), default=str))
    return str(folder)


def test_a_shape_is_held_against_the_real_configuration(tmp_path: Path) -> None:
    same = known_facts(replace(MODEL, id=saved(tmp_path / "same")), plan=False)
    assert not same.declared and same.mismatch is None
    other = known_facts(replace(MODEL, id=saved(tmp_path / "other", num_local_experts=6)), plan=False)
    assert other.num_experts == 6, "what is there counts"
    assert other.mismatch is not None and "num_local_experts=4 (there: 6)" in other.mismatch
    assert "\n" not in other.mismatch
    kind = known_facts(replace(MODEL, id=saved(tmp_path / "kind"), shape={"model_type": "olmoe"}), plan=False)
    assert kind.mismatch is not None and "model_type=olmoe (there: mixtral)" in kind.mismatch


def test_the_mismatch_is_one_line_before_the_run(bench: Any, config: Callable[..., Config], tmp_path: Path) -> None:
    model = replace(MODEL, id=saved(tmp_path / "other", num_local_experts=6))
    bench.run([config(model=model), config({"name": "no_drop"}, model=model)])
    lines = [line for line in bench.text().splitlines() if "model.shape" in line]
    assert len(lines) == 1 and lines[0].startswith("note: model.shape of ")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "bundled", "id": "lynx_tiny"}, "only a model of kind=hub takes one, not kind=bundled"),
        ({"shape": {"hidden_size": 4}}, "must name its model_type"),
        ({"published": {"lynx": 3}}, r"model.published.lynx=3: must be parameters of the policy"),
    ],
)
def test_bad_presets(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(MODEL, **fields)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            {"model_type": "mixtrall"},
            "model.shape.model_type=mixtrall: must be a model_type of transformers; did you mean",
        ),
        ({"model_type": "mixtral", "num_hidden_layers": "many"}, "model.shape: mixtral refuses it: "),
        ({"model_type": "llama"}, "is not a Mixture-of-Experts model"),
    ],
)
def test_bad_shapes(shape: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        known_facts(replace(MODEL, shape=shape), plan=True)
