"""Cells on several batch plans are one row, and what differs between plans is part of its error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_study import POLICIES

from analysis.study import study

Write = Callable[..., Path]


def test_plans_are_one_row(cell: Write, tmp_path: Path) -> None:
    for plan in range(3):
        for policy in (POLICIES[0], POLICIES[4]):
            for task in ("mini_gsm8k", "mini_wmt16"):
                cell(policy=policy, task=task, plan_seed=plan, documents=64)
    cell(policy=POLICIES[0], task="mini_humaneval", plan_seed=0, documents=64)
    found = study(tmp_path)
    rows = found.rows.set_index(["subtask", "policy"])
    assert rows["plans"].to_dict() == {
        ("mini_gsm8k", "vanilla"): 3,
        ("mini_gsm8k", "lynx"): 3,
        ("mini_humaneval", "vanilla"): 1,
        ("mini_wmt16", "vanilla"): 3,
        ("mini_wmt16", "lynx"): 3,
    }
    for subtask in ("mini_gsm8k", "mini_wmt16"):
        row = rows.loc[subtask, "lynx"]
        cells = row["cell_ids"].split()
        assert len(cells) == len(set(cells)) == 3 and (row["lanes"], row["documents"]) == (48, 64)
        alone = [study(path).rows.set_index("policy").loc["lynx"] for path in _apart(found, cells, tmp_path)]
        differences = [one["difference"] for one in alone]
        assert row["difference"] == pytest.approx(np.mean(differences))
        assert row["score"] == pytest.approx(np.mean([one["score"] for one in alone]))
        assert row["difference_plan_sd"] == pytest.approx(np.std(differences, ddof=1)) and row["plan_sd"] > 0
        assert -100 <= row["difference_low"] < row["difference"] < row["difference_high"] < 100
        assert np.isnan(row["p_mcnemar"]) or row["plans"] == 1
        for name in ("timed_active_experts", "selection_us"):
            assert row[name] == pytest.approx(np.mean([float(one[name] or "nan") for one in alone]), nan_ok=True)
        vanilla = rows.loc[subtask, "vanilla"]
        assert vanilla["plan_sd"] == pytest.approx(0.0, abs=1e-9), "the same answers in every plan"
    assert np.isnan(rows.loc[("mini_humaneval", "vanilla"), "plan_sd"])
    assert found.summary["plans"].min() >= 1


def _apart(found: object, cells: list[str], root: Path) -> list[Path]:
    """A folder for each plan's cell and its vanilla."""
    known = found.records.cells.set_index("cell_id")  # type: ignore[attr-defined]
    folders = []
    for cell in cells:
        pair = known[known["pair_id"] == known.loc[cell, "pair_id"]]
        folder = root.parent / f"{root.name}-{cell}"
        folder.mkdir()
        for path in map(Path, pair["path"]):
            shutil.copytree(path, folder / path.name)
        folders.append(folder)
    return folders
