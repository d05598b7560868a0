"""`first=[calibrate]`: what a sweep's cells lack is measured once, before they are checked."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lynx_exp.config import Config, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.prepare import on_demand
from lynx_exp.prepare.calibrate import CalibrateConfig
from lynx_exp.run import first_steps
from tests.prepare.test_calibrate import cell, model_config

XSHARE = {"name": "xshare", "budget": 3, "weights": "affine"}
Asked = list[tuple[Any, bool]]


def config(policy: dict[str, Any], **more: Any) -> Config:
    task = TaskConfig(name="t", subtasks=["t"])
    given = {"model": model_config(), "task": task, "tracker": TrackerConfig(), "device": "cpu", "first": ["calibrate"]}
    return Config(policy=policy, **given | more)  # type: ignore[arg-type]


def made(configs: list[Config]) -> str:
    said = StringIO()
    first_steps.make_what_lacks(configs, Console(file=said, width=200))
    return said.getvalue()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(first_steps, "_make", on_demand.make)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What would have been made: (policy, whether what it alone takes)."""
    found: Asked = []
    monkeypatch.setattr(first_steps, "_make", lambda config, of_policy: found.append((config.policy, of_policy)) or [])
    return found


def test_an_alignment_is_made_once_and_its_cell_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    small = lambda **given: CalibrateConfig(sequences=6, max_length=24, **given)  # noqa: E731  # in place of the class
    monkeypatch.setattr(on_demand, "CalibrateConfig", small)
    with pytest.raises(ValueError, match="has no alignment for this policy"):
        cell(XSHARE)
    said = made([config(XSHARE), config(XSHARE, seed=3), config({"name": "vanilla"})])
    (file,) = Path("calibrations").iterdir()
    assert said.splitlines() == ["calibrating: xshare(weights=affine, budget=3), batches of 4", f"  {file}"] or (
        "batches of 16" in said and str(file) in said
    )
    assert cell(XSHARE).cell_id and made([config(XSHARE)]) == ""


def test_who_lacks_what(asked: Asked) -> None:
    plain = {"name": "xshare", "budget": 3}
    nothing = [plain, {"name": "sere", "threshold": 0.2}, plain | {"weights": "original"}]
    made([config(policy) for policy in nothing])
    assert asked == [], "a random model has no calibration of its own"
    layered = plain | {"per_layer": "calibrated"}
    made([config(XSHARE), config(XSHARE, batch_size=8), config(layered)])
    assert [(policy["name"], of_policy) for policy, of_policy in asked] == [("xshare", True)] * 3
    asked.clear()
    made([config(XSHARE, first=[]), config(XSHARE, plan=True), config(XSHARE | {"match_active": 0.5})])
    assert asked == []


def test_a_model_of_a_folder_gets_its_facts_first(folder: Path, asked: Asked) -> None:
    small = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "hidden_size": 16}
    (folder / "mine").mkdir()
    text = json.dumps({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], **small})
    (folder / "mine/config.json").write_text(text)
    (folder / "mine/model.safetensors").write_bytes(b"")
    mine = ModelConfig(kind="hub", id=str(folder / "mine"))
    wants = [{"name": "sere", "threshold": 0.2}, {"name": "oea", "k0": 1, "protect": "calibrated"}]
    made([config(policy, model=mine) for policy in [*wants, {"name": "oea", "k0": 1}]])
    assert [of_policy for _, of_policy in asked] == [False]


def test_a_field_that_is_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="^first=train: must be one of calibrate$"):
        replace(config(XSHARE), first=["train"])
