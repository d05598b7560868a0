"""Subtasks of one task that ask the same documents are not independent, and their mean says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.load import load
from analysis.shared_documents import SharedDocuments
from analysis.statistics import Estimate, macro_mean, paired_difference
from analysis.study import study
from tests.analysis.fake_study import POLICIES

WORLDS = 300
LANE = 16


def changes(rng: np.random.Generator, documents: int) -> np.ndarray:
    drawn = rng.random(documents)
    return np.where(drawn < 0.06, -1.0, np.where(drawn < 0.12, 1.0, 0.0))


def mean_of(both: list[np.ndarray], rng: np.random.Generator) -> tuple[Estimate, Estimate]:
    """Of the subtasks taken for independent, and as they are. No change is the truth."""
    documents = len(both[0])
    lanes = np.arange(documents) // LANE
    estimates, residuals = [], []
    for change in both:
        vanilla = np.where(change == 0, rng.random(documents) < 0.5, change < 0).astype(float)
        estimates.append(paired_difference(vanilla + change, vanilla, lanes))
        residuals.append(pd.Series((change - change.mean()) / documents))
    factor = SharedDocuments._factor(residuals)
    return macro_mean(estimates), macro_mean([estimate.widened(factor) for estimate in estimates])


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.8])
def test_the_interval_of_the_mean_holds_the_truth(alike: float) -> None:
    """Of documents that change, a share changes alike in both subtasks."""
    rng, held = np.random.default_rng(1), np.zeros(2)
    for _ in range(WORLDS):
        first = changes(rng, 816)
        second = np.where(rng.random(816) < alike, first, changes(rng, 816))
        held += [one.low <= 0 <= one.high for one in mean_of([first, second], rng)]  # type: ignore[operator]
    apart, together = held / WORLDS
    assert together >= 0.935, "95 % less three standard errors of that many worlds are 91.2 %"
    assert (apart < 0.93) == (alike > 0)


def test_factors_by_hand() -> None:
    one = pd.Series([0.5, -0.5, 0.0, 0.0])
    assert SharedDocuments._factor([one, one]) == pytest.approx(np.sqrt(2)), "the same twice"
    assert SharedDocuments._factor([one, -one]) == 1.0, "never narrower"
    assert SharedDocuments._factor([one, pd.Series([0.0, 0.0, 1.0, -1.0])]) == 1.0, "nothing in common"
    assert SharedDocuments._factor([one, one, one]) == pytest.approx(np.sqrt(3))
    assert SharedDocuments._factor([one * 0, one * 0]) == 1.0, "nothing changed"
    apart = SharedDocuments._factor([pd.Series([1.0, -1.0], index=[0, 1]), pd.Series([1.0, -1.0], index=[1, 2])])
    assert apart == 1.0, "two documents of which one is shared, which moves the other way"


def test_only_subtasks_of_one_task_are_held_against_one_another(tmp_path: Path, cell: Callable[..., Path]) -> None:
    for task in ("mini_gsm8k", "mini_humaneval", "mini_truthfulqa"):
        for policy in (POLICIES[0], POLICIES[6]):
            cell(policy=policy, task=task, documents=64)
    rows = study(tmp_path).rows
    own = rows[rows["policy"] != "vanilla"].to_dict("records")
    shared = SharedDocuments(load(tmp_path))
    for quantity in ("score", "difference"):
        found = shared.factors(own, quantity)
        assert set(found) <= {"mini_truthfulqa_gen", "mini_truthfulqa_mc1"} and all(f > 1 for f in found.values())
    assert shared.factors(own, "active_experts") == {}


def test_the_same_answers_twice_are_as_sure_as_once(tmp_path: Path, cell: Callable[..., Path]) -> None:
    """With all of one subtask's scores in the other's place the mean's interval is that of one."""
    for policy in (POLICIES[0], POLICIES[6]):
        folder = cell(policy=policy, task="mini_truthfulqa", documents=64)
        samples = pd.read_parquet(folder / "samples.parquet")
        gen, mc1 = (samples["subtask"] == f"mini_truthfulqa_{name}" for name in ("gen", "mc1"))
        samples.loc[mc1, ["score", "lane"]] = samples.loc[gen, ["score", "lane"]].to_numpy()
        samples.to_parquet(folder / "samples.parquet", index=False)
    found = study(tmp_path)
    (mean,) = found.summary[found.summary["policy"] != "vanilla"].to_dict("records")
    (row, _) = found.rows[found.rows["policy"] != "vanilla"].to_dict("records")
    assert mean["difference"] == pytest.approx(row["difference"]) and mean["difference"] != 0
    for end in ("difference_low", "difference_high"):
        arms = (mean[end] - mean["difference"]) / (row[end] - row["difference"])
        assert 0.93 < arms <= 1.001, "but for Satterthwaite's degrees of freedom, which count the same lanes twice"
