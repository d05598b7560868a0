"""TruthfulQA's choices under a policy that acts in decode alone: decode scoring shows what it does; in prefill
scoring it never acts, and that is said."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lynx_exp.config import TaskConfig
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.read import CellRecord, read_cell
from tests.run.real_cells import bundled
from tests.tasks import real

POLICY = {"name": "lynx_v1_latency", "keep_experts": 2}


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    return real.write(tmp_path_factory.mktemp("documents"), ["truthfulqa_mc1", "truthfulqa_mc2"])


def pair(documents: Path, results: Path, scoring: str, limit: int | None = 12) -> tuple[CellRecord, CellRecord, str]:
    """Vanilla's record, the policy's, and what was said."""
    said = StringIO()
    task = TaskConfig(name="truthfulqa", subtasks=["truthfulqa_mc1", "truthfulqa_mc2"], data=str(documents))
    cells: list[Any] = [
        bundled(results, task=task, policy=policy, limit=limit, batch_size=6, scoring=scoring, truncate="left")
        for policy in ({"name": "vanilla"}, POLICY)
    ]
    report = run_cells(cells, console=Console(file=said, width=300))
    assert report.failed == 0
    vanilla, policy = (read_cell(outcome.folder) for outcome in report.outcomes)
    return vanilla, policy, said.getvalue()


def values(record: CellRecord) -> dict[str, float]:
    return {metric["subtask"]: metric["value"] for metric in record.metrics["metrics"]}


def test_decode_scoring_shows_what_the_policy_does(documents, tmp_path):
    vanilla, policy, said = pair(documents, tmp_path, "decode", None)
    before, after = values(vanilla), values(policy)
    assert before["truthfulqa_mc1"] != after["truthfulqa_mc1"] and before["truthfulqa_mc2"] != after["truthfulqa_mc2"]
    assert policy.metrics["active_experts"] <= 2 < vanilla.metrics["active_experts"]
    assert "scoring=prefill" not in said and policy.status["invalid"] == []


def test_prefill_scoring_says_that_the_policy_never_acts(documents, tmp_path):
    vanilla, policy, said = pair(documents, tmp_path, "prefill")
    assert values(vanilla) == values(policy), "no accuracy loss: a vacuous one"
    assert [row["logprob"] for row in vanilla.responses().to_pylist()] == [
        row["logprob"] for row in policy.responses().to_pylist()
    ]
    for subtask in ("truthfulqa_mc1", "truthfulqa_mc2"):
        line = (
            "scoring=prefill has no decode step, and with phases=decode the policy never acts: "
            f"its {subtask} is vanilla's; use scoring=decode or phases=both"
        )
        assert said.count(line) == 1 and any(line in note for note in policy.status["notes"])
        idle = f"{subtask}: no decode step, lynx_v1_latency(keep_experts=2) never acted: this is vanilla's"
        assert idle in policy.status["invalid"]
    assert vanilla.status["invalid"] == []
    assert not any("scoring=prefill" in note for note in vanilla.status["notes"])
