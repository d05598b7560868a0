"""`batching=auto` on a model whose rows cannot enter at any time: static, and said so; asked for otherwise, refused."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lynx_exp.config import Config, MeasureConfig, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.engine import Engine
from lynx_exp.models.tiny import tiny_config, tiny_model
from lynx_exp.run.prepare_cells import prepare_cells
from lynx_exp.run.run_cells import run_cells
from tests.run.lab import Task, Tokenizer

SLOTLESS = "deepseek_v32"


def load(name: str, limit: int | None = None, settings: object = None) -> Task:
    return Task(name, limit or 5)


def config(root: Path, model_type: str = SLOTLESS, **fields: Any) -> Config:
    folder = root / model_type
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny_config(model_type, vocab_size=300).to_dict(), default=str))
    return Config(
        model=ModelConfig(kind="hub", id=str(folder)),
        policy={"name": "vanilla"},
        task=TaskConfig(name="task", subtasks=["short"]),
        tracker=TrackerConfig(),
        results=str(root / "results"),
        batch_size=2,
        device="cpu",
        **fields,
    )


def test_a_default_run_of_a_model_without_slots_is_static_and_says_so(tmp_path: Path) -> None:
    out = StringIO()

    def open_engine(_config: Config) -> Engine:
        return Engine(tiny_model(SLOTLESS, vocab_size=300), Tokenizer())  # type: ignore[arg-type]

    report = run_cells([config(tmp_path)], console=Console(file=out, width=300), open_engine=open_engine, load=load)
    (outcome,) = report.outcomes
    assert outcome.state == "done", outcome.error
    told = f"{SLOTLESS}) attends to positions that an index of its own chooses: its lanes drain"
    assert "note: batching=static: " in out.getvalue() and told in out.getvalue()
    info = json.loads((outcome.folder / "cell.json").read_text())
    assert info["batching"] == "static"
    (note,) = (n for n in json.loads((outcome.folder / "status.json").read_text())["notes"] if told in n)
    assert note.startswith("batching=static: ")
    assert "batching: static" in (outcome.folder / "config.yaml").read_text()


@pytest.mark.parametrize(("model_type", "resolved"), [(SLOTLESS, "static"), ("mixtral", "continuous")])
def test_what_auto_comes_to_is_what_the_cell_is(tmp_path: Path, model_type: str, resolved: str) -> None:
    auto, asked = prepare_cells([config(tmp_path, model_type), config(tmp_path, model_type, batching=resolved)], load)
    assert auto.config.batching == resolved and auto.ids == asked.ids and auto.folder == asked.folder
    assert asked.note is None and (auto.note is None) == (resolved == "continuous")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"batching": "continuous"},
            r"batching=continuous: .*\(deepseek_v32\) attends .*; give batching=static, or auto",
        ),
        (
            {"measure": MeasureConfig(latency=True)},
            r"measure.latency=true: .*\(deepseek_v32\) .*; give measure.latency=f",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        prepare_cells([config(tmp_path, **asked)], load)
    assert "\n" not in str(refused.value)
