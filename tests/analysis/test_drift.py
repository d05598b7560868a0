"""Length drift: closed forms, pairing, and that table, report and figure show it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_study import POLICIES, FakePolicy, write_cell
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analysis import guards, load, print_table, write_figures
from analysis.compare import results
from analysis.drift import SOLVED, drift
from analysis.figures import length_drift
from analysis.load import Records
from analysis.statistics import Estimate, ratio_of_sums
from analysis.study import study

LONG = FakePolicy(name="random_keep", params={"keep_experts": 8}, keep=0.75, harm=0.2, longer=3, runs_on=4)
Response = tuple[int, int, str, float]
"""Tokens of thought, tokens of answer, what became of the thought, score."""


def _records(cells: dict[str, list[Response]], lane_size: int) -> Records:
    none = pd.DataFrame()
    rows = [
        {"cell_id": cell, "subtask": "task", "request": at, "doc_id": at, "lane": at // lane_size}
        | {"new_tokens": thought + answer, "thought_tokens": thought, "thought": kind, "score": score}
        | {"finish_reason": "eos"}
        for cell, responses in cells.items()
        for at, (thought, answer, kind, score) in enumerate(responses)
    ]
    frame = pd.DataFrame(rows)
    return Records(cells=none, metrics=none, samples=frame, responses=frame, steps=none, timing=none, fidelity=none)


def _of(cells: dict[str, list[Response]], lane_size: int = 2, rate: Estimate | None = None) -> dict[str, Estimate]:
    rates = {} if rate is None else {"p": rate}
    return drift(_records(cells, lane_size), {"v": "v", "p": "v"}, rates)["p", "task"]


kinds = st.sampled_from(["closed", "cut", "none"])
responses = st.lists(
    st.tuples(st.integers(0, 64), st.integers(0, 64), kinds, st.sampled_from([0.0, 1.0])), min_size=1, max_size=24
)


@given(responses, st.integers(1, 5))
def test_a_policy_that_answers_as_vanilla_does_not_drift(said: list[Response], lane_size: int) -> None:
    found = _of({"v": said, "p": said}, lane_size)
    solved = sum(score for *_, score in said)
    for name in ("thought_tokens", "answer_tokens", "thought_cut_share", SOLVED):
        value = found[f"{name}_difference"].value
        assert value == pytest.approx(0, abs=1e-9) if name != SOLVED or solved else math.isnan(value)


@given(responses, responses, st.integers(1, 5))
def test_numbers_are_means_and_differences_go_both_ways(
    vanilla: list[Response], policy: list[Response], lane_size: int
) -> None:
    size = min(len(vanilla), len(policy))
    vanilla, policy = vanilla[:size], policy[:size]
    there = _of({"v": vanilla, "p": policy}, lane_size)
    back = _of({"v": policy, "p": vanilla}, lane_size)
    assert there["thought_tokens"].value == pytest.approx(np.mean([row[0] for row in policy]))
    assert there["answer_tokens"].value == pytest.approx(np.mean([row[1] for row in policy]))
    assert there["thought_cut_share"].value == pytest.approx(np.mean([row[2] == "cut" for row in policy]))
    for name in ("thought_tokens", "answer_tokens", "thought_cut_share"):
        assert there[f"{name}_difference"].value == pytest.approx(-back[f"{name}_difference"].value, abs=1e-9)
    solved = sum(row[3] for row in policy)
    if solved:
        assert there[SOLVED].value == pytest.approx(sum(row[0] + row[1] for row in policy) / solved)
    else:
        assert math.isnan(there[SOLVED].value)


def test_the_price_of_a_solved_document_is_a_ratio_over_lanes() -> None:
    vanilla = [(10, 2, "closed", 1.0), (12, 2, "closed", 1.0), (9, 3, "closed", 0.0), (11, 1, "closed", 1.0)]
    policy = [(20, 2, "closed", 1.0), (25, 2, "cut", 0.0), (19, 3, "closed", 0.0), (21, 1, "closed", 1.0)]
    found = _of({"v": vanilla, "p": policy})
    wanted = ratio_of_sums([49.0, 44.0], [1.0, 1.0])
    assert (found[SOLVED].value, found[SOLVED].se) == pytest.approx((wanted.value, wanted.se))
    assert found[f"{SOLVED}_difference"].value == pytest.approx(93 / 2 - 50 / 3)
    influence = [(49 - 46.5 * 1) / 2 - (26 - 50 / 3 * 2) / 3, (44 - 46.5 * 1) / 2 - (24 - 50 / 3 * 1) / 3]
    assert found[f"{SOLVED}_difference"].se == pytest.approx(math.sqrt(2 * sum(each**2 for each in influence)))


def test_seconds_are_tokens_over_what_a_lane_decodes() -> None:
    said: list[Response] = [(10, 2, "closed", 1.0), (12, 2, "closed", 1.0), (9, 3, "closed", 0.0), (11, 1, "cut", 1.0)]
    rate = Estimate(value=4.0, low=3.0, high=5.0, se=0.4, df=9)
    found = _of({"v": said, "p": said}, rate=rate)
    cost = found[SOLVED]
    assert found["s_per_solved"].value == pytest.approx(cost.value / 4)
    assert cost.se is not None
    assert found["s_per_solved"].se == pytest.approx(cost.value / 4 * math.hypot(cost.se / cost.value, 0.1))
    assert "s_per_solved" not in _of({"v": said, "p": said})


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("thinking")
    for policy in (POLICIES[0], POLICIES[2], LONG):
        for batch in (4, 8):
            write_cell(root, policy=policy, batch_size=batch, documents=32, thoughts=100)
    return root


def _row(root: Path, policy: str) -> dict[str, Any]:
    rows = results(load(root))
    return rows[(rows["policy"] == policy) & (rows["batch_size"] == 4)].iloc[0].to_dict()


def test_a_study_says_thought_and_answer_apart_and_flags_cut_thoughts(thinking: Path) -> None:
    vanilla, long = _row(thinking, "vanilla"), _row(thinking, "random_keep")
    assert vanilla["thought_tokens"] - vanilla["answer_tokens"] == pytest.approx(100)
    assert vanilla["thought_tokens_difference"] == 0 and vanilla["thought_cut_share"] == 0
    assert long["thought_cut_share"] == pytest.approx(0.25) and long["thought_cut_share_difference"] == 0.25
    assert long["thought_tokens_difference"] > 3 and long["answer_tokens_difference"] < 0
    assert "more thoughts cut" in long["guard"] and guards.is_flagged(long["guard"])
    assert long["tokens_per_solved"] > vanilla["tokens_per_solved"] > 0


def test_table_figure_and_report_show_the_drift(thinking: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    print_table(thinking, Console(file=out, width=100), legend=True)
    assert "lengths: mini_gsm8k" in out.getvalue() and "tokens of thought and answer" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 100
    written = write_figures(thinking, out=tmp_path, only="length_drift")
    assert {path.suffix for path in written} == {".pdf", ".png", ".csv"}
    numbers = pd.read_csv(tmp_path / "length_drift.csv")
    assert set(numbers["policy"]) == {"lynx", "random_keep"} and len(numbers) == 4
    assert {"thought_tokens_difference_low", "tokens_per_solved_difference", "s_per_solved"} <= set(numbers)


def test_without_thoughts_only_who_asks_gets_the_figure(tmp_path: Path) -> None:
    for policy in (POLICIES[0], LONG):
        write_cell(tmp_path / "study", policy=policy, documents=16)
    assert length_drift.draw(study(tmp_path / "study"), tmp_path, "") == []
    assert write_figures(tmp_path / "study", out=tmp_path / "one", only="length_drift")
    out = io.StringIO()
    print_table(tmp_path / "study", Console(file=out, width=100))
    assert "lengths:" not in out.getvalue()
