"""A study at the scale that fits its model: which it is, what changes, what was typed, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lynx_exp.cli import run
from lynx_exp.config import ModelConfig
from lynx_exp.prepare.prefetch import jobs
from lynx_exp.run.sweeper.scales import ROOM, Study, at_scale, by_model, scale_of

PARSER = OverridesParser.create()
REAL = ModelConfig(kind="hub", id="some/model", instruct="some_instruct")
TINY = ModelConfig(kind="bundled", id="lynx_tiny")
PAPER: dict[str, Any] = {"params": {"task": "gsm8k"}, "cells": ["policy=vanilla,lynx"], "instruct": True}
COMMON = {"limit": "null", "plan_seeds": 3}


def study(*arguments: str) -> Study:
    params = {"task": "mini_gsm8k", "batch_size": "1,4"}
    return Study(params=params, cells=["policy=vanilla"], plan_seeds=1, arguments=["+paper=fig7", *arguments])


def scaled(
    model: ModelConfig,
    asked: str,
    *arguments: str,
    scales: Mapping[str, Mapping[str, Any] | None] | None = None,
    context: int | None = 32768,
) -> Study:
    said = {"paper": PAPER} if scales is None else scales
    return at_scale(study(*arguments), asked, said, model, common=lambda name: COMMON, context=lambda: context)


@pytest.mark.parametrize(
    ("model", "context", "scale"),
    [(TINY, 10**6, "laptop"), (REAL, ROOM, "paper"), (REAL, None, "paper"), (REAL, ROOM - 1, "laptop")],
)
def test_what_fits_a_model(model: ModelConfig, context: int | None, scale: str) -> None:
    assert scale_of(model, lambda: context) == scale


def test_the_papers_words_take_the_place_of_the_files() -> None:
    made = scaled(REAL, "auto", "model=some")
    assert made.params == {"task": "gsm8k", "batch_size": "1,4", "limit": "null"} and made.plan_seeds == 3
    assert made.cells == ["policy=vanilla,lynx"] and made.arguments == ["+paper=fig7", "model=some_instruct"]
    assert made.notes == (
        "scale=paper, as fits some/model; scale=laptop takes the studies as their files stand",
        "paper=fig7: model=some_instruct in place of some/model, as the paper measured there; model.instruct=null "
        "keeps it",
    )
    assert len(scaled(REAL, "paper", "model=some").notes) == 1, "who asks for it knows"


def test_a_laptop_takes_the_file_as_it_stands() -> None:
    for made in (scaled(TINY, "auto"), scaled(REAL, "laptop", "scale=laptop"), scaled(REAL, "auto", scales={})):
        assert made == study(), "the scale itself is no field of a cell"


def test_what_was_typed_wins() -> None:
    assert scaled(REAL, "paper", "plan_seeds=2").plan_seeds == 1, "the composed number, which is what was typed"
    assert scaled(REAL, "paper", "plan_seed=7").plan_seeds == 1
    assert "model=some" in scaled(REAL, "paper", "model=some", "model.id=other/one").arguments
    assert "model=some" in scaled(replace(REAL, instruct=None), "paper", "model=some").arguments


def test_models_of_one_sweep_have_scales_of_their_own() -> None:
    assert by_model(["a=1,2", "model=x,y", "b=3"], PARSER) == [["a=1,2", "model=x", "b=3"], ["a=1,2", "model=y", "b=3"]]
    assert by_model(["a=1,2", "model=x"], PARSER) == [["a=1,2", "model=x"]]
    assert by_model(["model=hub", "model.id=o/a,o/b"], PARSER) == [
        ["model=hub", "model.id=o/a"],
        ["model=hub", "model.id=o/b"],
    ]


@pytest.mark.parametrize(
    ("asked", "scales", "said"),
    [
        ("paper", {}, "scale=paper: only a study has one whose file says what it is then"),
        ("paper", {"poster": {}}, "scale=poster: must be one of auto, laptop, paper"),
        ("paper", {"auto": {}}, "scale=auto: must be one of"),
        ("paper", {"paper": {"tasks": "gsm8k"}}, "hydra.sweeper.scales.paper.tasks: must be params, cells or instruct"),
        ("paper", {"paper": {"cells": "policy=lynx"}}, "scales.paper: params must map fields to values, cells list"),
    ],
)
def test_bad_scales(asked: str, scales: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scaled(REAL, asked, scales=scales)


def test_a_cell_has_no_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scale=paper", "plan=true"]) == 2
    assert "error: scale=paper: is for a study, such as +paper=table2" in capsys.readouterr().err


def test_a_real_checkpoint_gets_the_papers_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the model nor a document is here."""
    words = ["+paper=table2", "model=mixtral_8x7b", "plan=true", "hardware=h200", "task=gsm8k,humaneval"]
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert "18 cells: 0 done, 18 to run" in out, "two tasks, three plans, three policies"
    assert "gsm8k lynx(alpha=0.7, beta=1) batch 16 plan 2, 1319 requests" in out and "mini_" not in out
    assert "mistralai/Mixtral-8x7B-Instruct-v0.1" in out and "mistralai/Mixtral-8x7B-v0.1" not in out
    assert "to download: the documents of gsm8k, humaneval, whose number and lengths are here as their files" in out
    assert "note: paper=table2: model=mixtral_8x7b_instruct in place of mistralai/Mixtral-8x7B-v0.1" in err


def test_prefetch_fetches_what_that_takes() -> None:
    wanted = jobs(["+paper=table2", "model=mixtral_8x7b", "task=gsm8k"], False)
    assert {config.model.id for config in wanted} == {"mistralai/Mixtral-8x7B-Instruct-v0.1"}
    assert {(config.limit, config.plan_seed) for config in wanted} == {(None, seed) for seed in range(3)}
    both = jobs(["+paper=fig4", "model=lynx_tiny,mixtral_8x7b"], True)
    assert {(config.model.id, config.task.name, config.limit) for config in both} == {
        *(("lynx_tiny", f"mini_{task}", 128) for task in ("gsm8k", "humaneval")),
        *(("mistralai/Mixtral-8x7B-v0.1", task, None) for task in ("gsm8k", "humaneval")),
    }


def test_presets_name_presets_that_are_tuned() -> None:
    from omegaconf import OmegaConf

    from lynx_exp.config import config_folder

    folder = config_folder() / "model"
    named = {path.stem: OmegaConf.load(path).get("instruct") for path in folder.glob("*.yaml")}
    assert {"mixtral_8x7b", "qwen3_30b_a3b", "dbrx_base"} == {name for name, instruct in named.items() if instruct}
    assert all((folder / f"{instruct}.yaml").is_file() for instruct in named.values() if instruct)
