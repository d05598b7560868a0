"""`lynx-results validate` on several responses to a document: a whole cell has no finding, changed repeats have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.checks.all_rules import Validation
from lynx_exp.config import GenerationConfig, TaskConfig
from lynx_exp.run.run_cells import run_cells
from tests.run.real_cells import bundled
from tests.verbs.study import cell_of, edit

REPEATS = 3
TASK = TaskConfig(
    name="mini_gsm8k",
    subtasks=["mini_gsm8k"],
    repeats=REPEATS,
    generation=GenerationConfig(temperature=1.0, max_gen_toks=12),
)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    assert run_cells([bundled(root, task=TASK, batch_size=2, limit=2, batching="static")]).failed == 0
    return root / "default"


def found(study: Path) -> list[Any]:
    return list(Validation(root=study).run())


def test_a_whole_cell_has_no_finding(several: Path) -> None:
    assert {finding.rule for finding in found(several)} <= {"invalid"}, "which says that short answers were cut"


def _scores(change: Callable[[list[float]], list[float] | None]) -> Callable[[list[dict[str, Any]]], None]:
    def changed(rows: list[dict[str, Any]]) -> None:
        rows[0]["repeat_scores"] = change(rows[0]["repeat_scores"])

    return changed


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_scores(lambda scores: scores[1:]), f"{REPEATS} repeat_scores of a document of mini_gsm8k"),
        (_scores(lambda scores: [*scores, scores[0]]), f"{REPEATS} repeat_scores of a document of mini_gsm8k"),
        (_scores(lambda scores: [1.0 - scores[0], *scores[1:]]), "the mean of its repeat_scores"),
        (_scores(lambda scores: None), f"{REPEATS} repeat_scores of a document of mini_gsm8k"),
        (_scores(lambda scores: [float("nan"), *scores[1:]]), "the mean of its repeat_scores"),
    ],
    ids=["one lost", "one twice", "another score", "all of a document lost", "no number"],
)
def test_changed_repeats_are_found(change: Callable[[Any], None], expected: str, several: Path, tmp_path: Path) -> None:
    study = tmp_path / "default"
    shutil.copytree(several, study)
    edit(cell_of(study, "mini_gsm8k", "vanilla"), "samples", change)
    (meant,) = [finding for finding in found(study) if finding.rule == "scores"]
    assert meant.severity == "error" and expected in meant.expected and "\n" not in str(meant)
