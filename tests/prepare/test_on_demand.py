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
from lynx_exp.prepare.writable import check_writable
from lynx_exp.routing import build_policy
from lynx_exp.routing.alignment import Alignment
from lynx_exp.routing.budgets import Budgets
from lynx_exp.run import first_steps
from tests.prepare.test_calibrate import cell, engine, model_config

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
    assert said.splitlines() == ["calibrating: xshare(budget=3, weights=affine), batches of 16", f"  {file}"]
    assert cell(XSHARE, batch_size=16).note is None and made([config(XSHARE)]) == ""


@pytest.mark.parametrize("way", [{"weights": "affine"}, {"per_layer": "calibrated"}])
def test_each_size_of_batch_has_its_own(way: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order they are asked for; one of another size is not taken, but what does not say its own is."""
    small = lambda **given: CalibrateConfig(sequences=6, max_length=24, **given)  # noqa: E731  # in place of the class
    monkeypatch.setattr(on_demand, "CalibrateConfig", small)
    policy = {"name": "xshare", "budget": 3} | way
    assert made([config(policy, batch_size=2)]).count("calibrating: ") == 1
    (two,) = Path("calibrations").iterdir()
    with pytest.raises(ValueError, match=rf"{two.name} .*not measured in this run's batches of 4; `lynx-prepare") as no:
        cell(policy)
    key, value = next(iter(way.items()))
    assert all(word in str(no.value) for word in (" policy=xshare ", f" policy.{key}={value}", " batch_size=4` does"))
    assert cell(policy, plan=True).lacks == str(no.value)
    assert made([config(policy, batch_size=4), config(policy, batch_size=2)]).count("calibrating: ") == 1
    mine, theirs = cell(policy), cell(policy, batch_size=2)
    assert mine.note is None and mine.policy != theirs.policy
    loaded = engine()
    assert loaded.act(mine.policy) != loaded.act(theirs.policy), "two policies to a pack"
    with pytest.raises(ValueError, match="which of them is meant"):
        loaded.bind(build_policy(**policy))
    kind = Alignment if "weights" in way else Budgets
    four = next(file for file in Path("calibrations").iterdir() if file != two)
    held = kind.load(four)
    del held.provenance["batch_size"]
    held.save(four)
    assert cell(policy).note == f"{four.name}: does not say in batches of which size; taken for batches of 4"
    assert made([config(policy, batch_size=4)]) == "" and cell(policy, batch_size=2).cell_id == theirs.cell_id
    two.unlink()
    assert loaded.bind(build_policy(**policy)), "nobody said a size, and there is one alone"


def test_a_place_that_cannot_be_written_to_is_said_before_the_work(folder: Path) -> None:
    (folder / "calibrations").write_text("")
    with pytest.raises(ValueError, match="^policy=xshare: .*/calibrations is a file or leads nowhere, where a folder"):
        made([config(XSHARE)])
    (folder / "calibrations").unlink()
    (folder / "calibrations").symlink_to(folder / "nothing")
    with pytest.raises(ValueError, match="^policy=xshare: .*/calibrations is a file or leads nowhere, where a folder"):
        made([config(XSHARE)])
    with pytest.raises(ValueError, match="^here: /proc: cannot be written to: "):
        check_writable(Path("/proc/calibrations"), "here")


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
