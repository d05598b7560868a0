"""Mixes: what shares a lane, and what that does to active experts."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_study import MIX, POLICIES, FakePolicy, write_cell
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analysis import composition, load, print_table, write_figures
from analysis.compare import results
from analysis.macro import summary
from analysis.statistics import Estimate, dependent_mean, difference_of_means, macro_mean, t_interval


@pytest.fixture(scope="module")
def mixes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of 16 documents each in 8 lanes, shuffled and separate; shuffled lanes run two experts more."""
    root = tmp_path_factory.mktemp("mixes")
    for mixing in ("shuffled", "separate"):
        for policy in (POLICIES[0], POLICIES[5]):
            write_cell(root, policy=policy, task="mix", mixing=mixing, repeats=0)
    write_cell(root, task="mini_gsm8k", repeats=0)
    return root


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_effective_tasks_lie_between_one_and_their_number(counts: list[int]) -> None:
    found = composition.effective_number(np.array([counts], dtype=float))[0]
    assert 1 - 1e-9 <= found <= sum(map(bool, counts)) + 1e-9


def test_effective_tasks_closed_forms() -> None:
    found = composition.effective_number(np.array([[4, 0, 0], [2, 2, 0], [3, 3, 3], [3, 1, 0]], dtype=float))
    assert found == pytest.approx([1, 2, 3, math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))])


def _of_scored_tokens(steps: pd.DataFrame) -> float:
    return float(np.average(steps["active_experts"], weights=steps["scored_rows"]))


def test_rows_are_of_members_and_active_experts_of_the_stream(mixes: Path) -> None:
    records = load(mixes)
    rows = results(records)
    mixed = rows[rows["task"] == "mix"]
    assert mixed.groupby("cell_id")["subtask"].agg(tuple).map(sorted).tolist() == [sorted(MIX["mix"])] * 4
    for cell, part in mixed.groupby("cell_id"):
        steps = records.steps[records.steps["cell_id"] == cell]
        assert set(steps["subtask"]) == {"mix"}
        assert part["active_experts"].tolist() == pytest.approx([_of_scored_tokens(steps)] * 2)
        assert part["active_experts_se"].nunique() == 1
    assert mixed["lanes"].tolist() == [4, 4, 4, 4, 8, 8, 8, 8]
    assert mixed["documents"].eq(16).all() and mixed["difference"].notna().all()


def test_a_mix_is_a_setting_of_its_own(mixes: Path) -> None:
    records = load(mixes)
    rows = results(records)
    assert sorted(set(rows["setting"])) == ["", "mix separate", "mix shuffled"]
    means = summary(records, rows)
    assert means["subtasks"].tolist() == [1, 2, 2, 2, 2] == means["all_subtasks"].tolist()
    for _, mean in means.iterrows():
        part = rows[(rows["setting"] == mean["setting"]) & (rows["series"] == mean["series"])]
        assert mean["active_experts_se"] == pytest.approx(part["active_experts_se"].iloc[0]), "one number, not several"
        errors = part["score_se"].to_numpy()
        shared = mean["mixing"] == "shuffled"
        together = errors.mean() if shared else np.sqrt((errors**2).sum()) / len(errors)
        assert mean["score_se"] == pytest.approx(together, rel=0.15), "unlike degrees of freedom"


def test_lanes_of_a_mix(mixes: Path) -> None:
    records = load(mixes)
    lanes = composition.lanes(records, results(records))
    assert list(lanes.columns) == list(composition.LANE_COLUMNS)
    assert len(lanes) == 4 * 8 and lanes["requests"].eq(4).all()
    shuffled, separate = (lanes[lanes["mixing"] == mixing] for mixing in ("shuffled", "separate"))
    assert set(shuffled["composition"]) == {"mini_gsm8k 2 + mini_wmt16 2"}
    assert set(separate["composition"]) == {"mini_gsm8k 4", "mini_wmt16 4"}
    assert shuffled["effective_tasks"].tolist() == pytest.approx([2] * 16)
    assert lanes["live_rows"].tolist() == pytest.approx([(5 * 4 + 3) / 6] * 32)
    one = lanes.iloc[3]
    steps = records.steps[(records.steps["cell_id"] == one["cell_id"]) & (records.steps["lane"] == one["lane"])]
    assert one["active_experts"] == pytest.approx(_of_scored_tokens(steps))


def test_the_difference_is_welchs(mixes: Path) -> None:
    records = load(mixes)
    means = composition.summary(composition.lanes(records, results(records)))
    assert means["mixing"].tolist() == ["separate", "shuffled"] * 2
    assert means["lanes"].tolist() == [8] * 4
    assert means.loc[means["mixing"] == "separate", "difference"].isna().all()
    for at in (0, 2):
        apart, mixed = means.iloc[at], means.iloc[at + 1]
        assert mixed["difference"] == pytest.approx(mixed["active_experts"] - apart["active_experts"])
        assert mixed["difference"] == pytest.approx(2.0, abs=0.4)  # as the study was made
        assert mixed["difference_se"] == pytest.approx(
            math.hypot(mixed["active_experts_se"], apart["active_experts_se"])
        )
        assert mixed["difference_low"] > 0


def test_dependent_and_independent_means() -> None:
    one, other = t_interval(1.0, 0.3, 9), t_interval(3.0, 0.5, 4)
    both = dependent_mean([one, other])
    assert (both.value, both.se, both.df) == pytest.approx((2.0, 0.4, 4))
    assert both.se > macro_mean([one, other]).se
    welch = difference_of_means(other, one)
    df = (0.09 + 0.25) ** 2 / (0.09**2 / 9 + 0.25**2 / 4)
    assert (welch.value, welch.se, welch.df) == pytest.approx((2.0, math.sqrt(0.34), df))
    assert difference_of_means(one, Estimate(value=4.0)) == Estimate(value=-3.0)
    assert dependent_mean([one, Estimate(value=4.0)]) == Estimate(value=2.5)


def test_the_table_and_its_csv(mixes: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    print_table(mixes, console=Console(file=stream, width=100), csv=tmp_path / "table.csv")
    text = stream.getvalue()
    assert max(len(line) for line in text.splitlines() if not line.startswith("wrote ")) <= 100
    part = text[text.index("mix: experts by what shares a lane · batch size 4") :]
    assert part.count("\nvanilla ") == 2 and "shuffled      8  2.00" in part
    assert len(pd.read_csv(tmp_path / "table_lanes.csv")) == 32


def test_no_mix_no_word_of_it(tmp_path: Path) -> None:
    write_cell(tmp_path, repeats=0)
    stream = io.StringIO()
    print_table(tmp_path, console=Console(file=stream, width=100), csv=tmp_path / "table.csv")
    assert "shares a lane" not in stream.getvalue()
    assert not (tmp_path / "table_lanes.csv").exists()


def test_the_figure(mixes: Path, tmp_path: Path) -> None:
    written = write_figures(mixes, out=tmp_path / "figures", only="mixing")
    assert [path.name for path in written] == ["mixing.pdf", "mixing.png", "mixing.csv"]
    numbers = pd.read_csv(written[2])
    assert len(numbers) == 32 and {"effective_tasks", "active_experts", "composition", "guard"} <= set(numbers)
    again = write_figures(mixes, out=tmp_path / "again", only="mixing")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(written, again, strict=True))


def test_a_flagged_cell_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = FakePolicy(name="top_k", params={"k": 1}, longer=5)
    for mixing in ("shuffled", "separate"):
        for policy in (POLICIES[0], broken):
            write_cell(tmp_path, policy=policy, task="mix", mixing=mixing, repeats=0)
    stream = io.StringIO()
    print_table(tmp_path, console=Console(file=stream, width=100))
    text = stream.getvalue()
    assert "top_k(k=1) !" in text[text.index("experts by what shares a lane") :]
    numbers = pd.read_csv(write_figures(tmp_path, out=tmp_path / "figures", only="mixing")[2], keep_default_na=False)
    assert set(numbers["guard"]) == {"", "longer"}
    assert set(numbers.loc[numbers["guard"] == "longer", "policy"]) == {"top_k"}


def test_what_is_lacking_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_cell(tmp_path, repeats=0)
    with caplog.at_level(logging.WARNING):
        assert write_figures(tmp_path, only="mixing") == []
        write_cell(tmp_path, task="mix", mixing="shuffled", repeats=0)
        assert write_figures(tmp_path, only="mixing") == []
    assert "figure mixing skipped: no cell of a mix (task.weights) recorded active experts" in caplog.text
    assert "figure mixing skipped: all mixes are shuffled; task.mixing=shuffled,separate runs" in caplog.text
