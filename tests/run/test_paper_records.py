"""What the paper's studies record, on the bundled model: written, whole, and read by analysis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import load
from analysis.compare import results
from analysis.token_tables import expert_counts, read_tokens
from lynx_exp.config import MeasureConfig, TaskConfig
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.read import read_cells
from tests.run.real_cells import bundled

TASK = TaskConfig(name="mini_truthfulqa", subtasks=["mini_truthfulqa_gen", "mini_truthfulqa_mc1"])
MEASURE = MeasureConfig(latency=True, windows=2, max_windows=2, new_tokens=2, prefill=True, breakdown=True, context=40)
REASSIGN = {"name": "reassign", "fraction": 1.0}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("records")
    common = {"task": TASK, "batch_size": 3, "limit": 6, "tail": "drain", "tokens": True, "measure": MEASURE}
    configs = [bundled(root, **common), bundled(root, policy=REASSIGN, phases="both", fidelity=True, **common)]
    assert run_cells(configs).failed == 0
    return root / "default"


def test_all_tables_are_there(study: Path) -> None:
    for cell in read_cells(study):
        files = {path.stem for path in cell.path.glob("*.parquet")}
        assert files >= {"tokens", "breakdown", "timing", "steps"}
        assert ("prefill" in files) == ("fidelity" in files) == (cell.info["policy"] == "reassign")


def test_every_assignment_was_changed(study: Path) -> None:
    rows = results(load(study)).set_index(["policy", "subtask"])
    for subtask in TASK.subtasks:
        assert rows.loc[("reassign", subtask), ["changed", "prompt_changed"]].tolist() == [1.0, 1.0]
        assert rows.loc[("vanilla", subtask), "changed"] == 0.0
        assert np.isnan(rows.loc[("vanilla", subtask), "prompt_changed"])


def test_tokens_hold_what_ran(study: Path) -> None:
    records = load(study)
    for cell in records.cells.to_dict("records"):
        tokens = read_tokens(cell["path"])
        layers = tokens.groupby(["subtask", "request", "step"])["layer"].nunique()
        assert (layers == 4).all()
        assert (tokens["kl"] == 0).all() == (cell["policy"] == "vanilla")
        assert tokens["confidence"].between(0, 15 / 256).all()
        who, counts = expert_counts(cell["path"], 16)
        per_step = counts.sum(axis=1)
        assert (per_step % 2 == 0).all() and per_step.max() <= 2 * 3 * 4, "two experts for each row, choices included"
        assert len(who) == len(who.drop_duplicates())


def test_active_experts_of_tokens_are_those_of_the_steps(study: Path) -> None:
    """Vanilla's tokens are those that it decoded, so the same experts ran."""
    records = load(study)
    vanilla = records.cells[records.cells["policy"] == "vanilla"].iloc[0]
    who, counts = expert_counts(vanilla["path"], 16)
    who["active"] = (counts > 0).sum(axis=1)
    steps = records.steps[records.steps["cell_id"] == vanilla["cell_id"]]
    keys = ["subtask", "lane", "step", "layer"]
    both = who.merge(steps.astype({"subtask": str}), on=keys)
    assert len(both) == len(who) == len(steps)
    assert (both["active"] == both["active_experts"]).all()


def test_prefills_and_sections_reach_the_frames(study: Path) -> None:
    records = load(study)
    assert set(records.timing["name"]) == {"vanilla", "policy", "vanilla prefill", "policy prefill"}
    assert (records.cells["timed_context"] == 40).all() and (records.cells["prefill_tokens"] == 3 * 40).all()
    active = records.cells.set_index("policy")["prefill_active_experts"]
    assert 2 < active["vanilla"] <= 16 and active["reassign"] > active["vanilla"]
    sections = records.breakdown.groupby(["cell_id", "name"], observed=True)["section"].nunique()
    assert (sections == 5).all() and len(sections) == 3
