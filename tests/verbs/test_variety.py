"""`validate` on cells of every kind that there is: what it derives is what each of them wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lynx_exp.checks.all_rules import Validation
from lynx_exp.config import Config, GenerationConfig, TaskConfig
from lynx_exp.run.run_cells import run_cells
from tests.run.real_cells import bundled
from tests.verbs.study import MEASURE, VANILLA, results

TRUTHFUL = TaskConfig(name="mini_truthfulqa", subtasks=["mini_truthfulqa_gen", "mini_truthfulqa_mc1"])
SAMPLED = TaskConfig(
    name="mini_humaneval",
    subtasks=["mini_humaneval"],
    repeats=3,
    generation=GenerationConfig(temperature=0.8, top_p=0.9),
)
SEPARATE = TaskConfig(
    name="mix",
    subtasks=["mini_gsm8k", "mini_humaneval", "mini_wmt16"],
    weights=[3.0, 1.0, 2.0],
    mixing="separate",
)
GSM = TaskConfig(name="mini_gsm8k", subtasks=["mini_gsm8k"])
POINTS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    (VANILLA, {}),
    ({"name": "noise_floor"}, {}),
    ({"name": "no_drop"}, {}),
    ({"name": "top_k", "k": 1}, {"layers": "1:"}),
    ({"name": "coverage", "match_active": 3.0}, {}),
    ({"name": "sere", "calibration": "auto"}, {}),
    ({"name": "lexi", "calibration": "auto"}, {}),
    ({"name": "lynx", "alpha": 1.0, "beta": 1}, {"phases": "both"}),
    ({"name": "lynx_v1_latency", "keep_experts": 4}, {"phases": "prefill"}),
)


def cells(root: Path) -> list[Config]:
    made = []
    for policy, more in POINTS:
        asked = {"task": TRUTHFUL, "batch_size": 4, "limit": 9, "policy": policy} | more
        made.append(bundled(root, **asked))
        if "phases" not in more:  # choices are scored so only under policies of decode
            made.append(bundled(root, batching="continuous", waves=2, fidelity=True, **asked))
    for policy in (VANILLA, {"name": "oea"}):
        acts = {} if policy is VANILLA else {"phases": "both"}  # in decode alone it would never act, which is an error
        made += [
            bundled(root, task=TRUTHFUL, batch_size=4, limit=9, scoring="prefill", policy=policy, **acts),
            bundled(root, task=SAMPLED, batch_size=4, limit=5, policy=policy),
            bundled(root, task=SEPARATE, batch_size=4, limit=6, policy=policy),
            bundled(root, task=SEPARATE, batch_size=3, limit=6, batching="continuous", waves=2, seed=3, policy=policy),
            bundled(root, task=GSM, batch_size=1, limit=4, measure=MEASURE, policy=policy),
        ]
    return made


@pytest.mark.slow
def test_no_kind_of_cell_has_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cells(cells(tmp_path)).failed == 0
    assert [str(finding) for finding in Validation(root=tmp_path).run() if finding.severity == "error"] == []
    assert results("validate", "--rescore", tmp_path) == 0
    capsys.readouterr()
    assert results("diff", tmp_path, tmp_path) == 0
    assert results("gc", tmp_path) == 0
    assert capsys.readouterr().out.endswith("nothing to delete\n")
