"""Divergences of cells on the same responses: ratios and their intervals, and what other weights make of a policy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_study import FakePolicy, write_cell
from hypothesis import given
from hypothesis import strategies as st

from analysis import write_figures
from analysis.divergences import Divergences, ratio
from analysis.study import study as read_study
from analysis.weight_comparison import TUNED, weighings

TASKS = ("mini_gsm8k", "mini_truthfulqa")
VANILLA = FakePolicy(name="vanilla", params={})


def divergences(kl_CV: np.ndarray, tokens_C: np.ndarray, subtasks: int) -> Divergences:
    return Divergences(kl_CV=kl_CV, tokens_C=tokens_C, subtask_C=np.arange(len(tokens_C)) % subtasks)


@given(st.integers(0, 2**31), st.integers(1, 3), st.floats(0.1, 10))
def test_a_constant_ratio_has_no_width_and_units_do_not_matter(seed: int, subtasks: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    own, tokens = rng.gamma(2.0, size=4 * subtasks), rng.integers(5, 50, 4 * subtasks).astype(float)
    found = divergences(np.stack([own, factor * own], 1), tokens, subtasks).log_combination([-1, 1])
    assert found.value == pytest.approx(math.log(factor)) and found.low == pytest.approx(found.high)
    rates = np.stack([own, rng.gamma(2.0, size=len(own))], 1)
    one = divergences(rates, tokens, subtasks).log_combination([-1, 1])
    other = divergences(1000 * rates, 7 * tokens, subtasks).log_combination([-1, 1])
    back = divergences(rates, tokens, subtasks).log_combination([1, -1])
    assert one.value == pytest.approx(other.value) and one.high == pytest.approx(other.high)
    assert one.value == pytest.approx(-back.value) and one.low == pytest.approx(-back.high)


def test_the_interval_covers() -> None:
    """Lanes whose ratio varies about 2: of 400 intervals about 95 % hold it."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        base = rng.gamma(20.0, size=24)
        kl_CV = np.stack([base, 2 * base * rng.normal(1.0, 0.2, 24)], 1)
        found = ratio(divergences(kl_CV, np.full(24, 30.0), 2).log_combination([-1, 1]))
        assert found.low is not None and found.high is not None
        inside += found.low < 2 < found.high
    assert 0.91 < inside / 400 < 0.98


def test_what_has_no_ratio_says_so() -> None:
    nothing = divergences(np.array([[0.0, 1.0], [0.0, 2.0]]), np.ones(2), 1)
    assert math.isnan(nothing.log_combination([-1, 1]).value)
    alone = divergences(np.array([[1.0, 3.0]]), np.ones(1), 1).log_combination([-1, 1])
    assert alone.value == pytest.approx(math.log(3)) and alone.low is None


def weighed(weights: str, k2: int | None = None) -> FakePolicy:
    params: dict[str, object] = {"match_active": 0.5}
    shown: tuple[str, ...] = ("match_active",)
    if weights != "renormalize":
        params["weights"] = weights
    if k2 is not None:
        params |= {"k2": k2}
        shown = ("k2", "match_active")
    return FakePolicy(name="coverage", params=params, keep=0.5, shown=shown)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    divergence = {("renormalize", None): 0.02, ("original", None): 0.04, ("reference", 3): 0.01, ("reference", 16): 0.3}
    for task in TASKS:
        write_cell(root, policy=VANILLA, task=task, repeats=0)
        for (weights, k2), kl in divergence.items():
            write_cell(root, policy=weighed(weights, k2), task=task, repeats=0, kl=kl)
    return root


def test_weights_are_held_against_the_policys_own(root: Path) -> None:
    found = weighings(read_study(root)).set_index("weighing")
    assert found["ratio"].to_dict() == pytest.approx(
        {"renormalize": 1.0, "original": 2.0, "reference(3)": 0.5, "reference(16)": 15.0, TUNED: 0.5}
    )
    assert found["k2"].to_dict() == {
        "renormalize": "", "original": "K", "reference(3)": "3", "reference(16)": "16", TUNED: "3"
    }  # fmt: skip
    assert set(found["of"]) == {"coverage(match_active=0.5)"}
    own, tuned = found.loc["reference(3)"], found.loc[TUNED]
    assert own["difference"] == tuned["difference"] and own["kl"] == pytest.approx(tuned["kl"])


def test_k2_is_taken_from_the_documents_that_it_is_not_scored_on(root: Path) -> None:
    """k2=16 is best on the even documents alone: it is chosen for the odd ones, where it is not."""
    study = read_study(root)
    cells = study.records.cells.set_index("cell_id")["policy_params"]
    wide = study.records.fidelity["cell_id"].astype(str).map(cells).str.contains('"k2": 16')
    kl = study.records.fidelity["kl"].where(~(wide & (study.records.fidelity["doc_id"] % 2 == 0)), 1e-6)
    records = replace(study.records, fidelity=study.records.fidelity.assign(kl=kl))
    found = weighings(replace(study, records=records)).set_index("weighing")
    assert found.loc[TUNED, "k2"] == "3/16" and pd.isna(found.loc[TUNED, "difference"])
    assert found.loc[TUNED, "ratio"] > found.loc["reference(16)", "ratio"]


def test_the_figure_has_every_k2_in_its_numbers(root: Path, tmp_path: Path) -> None:
    write_figures(root, out=tmp_path, only="weights")
    numbers = pd.read_csv(tmp_path / "weights.csv")
    assert {"reference(16)", TUNED, "original"} < set(numbers["weighing"]) and (tmp_path / "weights.png").exists()


def test_without_vanilla_the_ratios_are_drawn(tmp_path: Path) -> None:
    """No difference in accuracy is known then; the divergences are."""
    for task in TASKS:
        for weights, kl in (("renormalize", 0.02), ("original", 0.04)):
            write_cell(tmp_path / "study", policy=weighed(weights), task=task, repeats=0, kl=kl)
    write_figures(tmp_path / "study", out=tmp_path, only="weights")
    numbers = pd.read_csv(tmp_path / "weights.csv").set_index("weighing")
    assert numbers.loc["original", "ratio"] == pytest.approx(2.0) and numbers["difference"].isna().all()
