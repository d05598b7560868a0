"""A checkpoint that cannot be read costs its own cells: the others of a list of models run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import lynx_exp.models
from lynx_exp.config import ModelConfig, TaskConfig
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.files import read_json
from tests.run.real_cells import bundled

LFS = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize("damage", ["cut", "pointer"])
def test_a_bad_checkpoint_stops_no_other_model(tmp_path: Path, damage: str) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(Path(lynx_exp.models.__file__).parent / "lynx_tiny", bad)
    weights = bad / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000] if damage == "cut" else LFS.encode())
    model = ModelConfig(kind="hub", id=str(bad))
    good = bundled(tmp_path / "r", limit=2, batch_size=1, task=TaskConfig(name="mini_gsm8k", subtasks=["mini_gsm8k"]))
    first, second = run_cells([replace(good, model=model), good]).outcomes
    assert (first.state, second.state) == ("failed", "done")
    assert "model.safetensors" in str(first.error) and "\n" not in str(first.error)
    status = read_json(first.folder / "status.json")
    assert status is not None and status["error"]["kind"] == "load"
