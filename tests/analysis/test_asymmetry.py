"""Decode against prefill at equal strength: interpolation, both units, and the figure."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
from fake_study import FakePolicy, write_cell

from analysis import write_figures
from analysis.asymmetry import asymmetries, disturbances
from analysis.study import study as read_study

TASKS = ("mini_gsm8k", "mini_wmt16")
DECODE = {0.9: 0.01, 0.6: 0.16}
PREFILL = {0.8: 0.08, 0.7: 0.18}
"""Share kept: KL in nats a token. The divergence is that of 1 - keep squared, in prefill twice as much."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phases")
    for task in TASKS:
        write_cell(root, policy=FakePolicy(name="vanilla", params={}), task=task, repeats=0)
        for phases, settings in (("decode", DECODE), ("prefill", PREFILL)):
            for keep, kl in settings.items():
                policy = FakePolicy(name="reassign", params={"fraction": 1 - keep}, keep=keep, harm=0.1)
                write_cell(root, policy=policy, task=task, repeats=0, kl=kl, phases=phases)
        lone = FakePolicy(name="random_keep", params={"keep_experts": 8}, keep=0.5)
        write_cell(root, policy=lone, task=task, repeats=0, kl=0.1)
    return root


def test_strengths_are_those_of_the_phase(root: Path) -> None:
    points = disturbances(read_study(root))
    assert set(points["disturbance"]) == {"reassign"}, "random_keep was tried in decode alone"
    by_phase = {phase: part["lost"].round(6).tolist() for phase, part in points.groupby("phases")}
    assert by_phase == {"decode": [10.0, 40.0], "prefill": [20.0, 30.0]}
    shares = points[points["phases"] == "prefill"]["changed"].tolist()
    assert shares == pytest.approx([20.0, 30.0], abs=1.0)


def test_the_ratio_is_taken_where_both_phases_have_been(root: Path) -> None:
    found = asymmetries(read_study(root)).set_index("unit")
    lost = found.loc["lost"]
    assert lost["at"] == pytest.approx(math.sqrt(20 * 30))
    assert lost["ratio"] == pytest.approx(2.0, rel=1e-6), "the law between the points is a power"
    assert lost["ratio_low"] == pytest.approx(lost["ratio_high"]), "every lane has the same ratio"


def test_phases_without_a_common_strength_have_no_ratio(tmp_path: Path) -> None:
    for task in TASKS:
        write_cell(tmp_path, policy=FakePolicy(name="vanilla", params={}), task=task, repeats=0)
        for phases, keep in (("decode", 0.9), ("prefill", 0.5)):
            policy = FakePolicy(name="reassign", params={"fraction": 1 - keep}, keep=keep)
            write_cell(tmp_path, policy=policy, task=task, repeats=0, kl=0.1, phases=phases)
    assert asymmetries(read_study(tmp_path))[["at", "ratio"]].isna().all(axis=None)


def test_the_figure_and_its_numbers(root: Path, tmp_path: Path) -> None:
    write_figures(root, out=tmp_path, only="phases")
    assert len(pd.read_csv(tmp_path / "phases.csv")) == 4 and (tmp_path / "phases.png").exists()
    assert set(pd.read_csv(tmp_path / "phases_ratio.csv")["unit"]) == {"changed", "lost"}, "nothing is pruned"


def test_pruned_experts_are_a_unit_of_their_own(tmp_path: Path) -> None:
    """At as many experts prefill moves twice as far, though each phase loses another share of its mass."""
    for task in TASKS:
        write_cell(tmp_path, policy=FakePolicy(name="vanilla", params={}), task=task, repeats=0)
        for phases, most in (("decode", 1.0), ("prefill", 0.9)):
            for kept in (4, 8):
                policy = FakePolicy(name="lynx_v1_latency", params={"keep_experts": kept}, keep=most - 1 / kept)
                kl = (0.1 if phases == "decode" else 0.2) / kept
                write_cell(tmp_path, policy=policy, task=task, repeats=0, kl=kl, phases=phases)
    found = asymmetries(read_study(tmp_path)).set_index("unit")
    assert found.loc["experts", "ratio"] == pytest.approx(2.0) and found.loc["experts", "at"] == pytest.approx(32**0.5)
    assert found.loc["lost", "ratio"] < found.loc["experts", "ratio"]
