"""Guards: closed forms, what is flagged, and that every table and figure shows it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_study import LENGTH_LIMIT, POLICIES, SUBTASKS, FakePolicy, write_cell
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analysis import guards, load, print_table, write_figures
from analysis.compare import results
from analysis.figures import looks, style
from analysis.load import Records
from analysis.macro import summary
from analysis.statistics import Estimate, paired_difference, ratio_of_sums

BROKEN = FakePolicy(name="random_keep", params={"keep_experts": 8}, keep=0.75, harm=0.2, longer=3, runs_on=5)
LABEL = "random_keep(keep_experts=8)"


def _records(cells: dict[str, list[tuple[int, str]]], lane_size: int) -> Records:
    """Cells with one subtask; a response is its tokens and how it ended."""
    none = pd.DataFrame()
    rows = [
        {"cell_id": cell, "subtask": "task", "request": number, "lane": number // lane_size}
        | {"new_tokens": tokens, "finish_reason": reason}
        for cell, responses in cells.items()
        for number, (tokens, reason) in enumerate(responses)
    ]
    responses = pd.DataFrame(rows)
    return Records(cells=none, metrics=none, samples=none, responses=responses, steps=none, timing=none, fidelity=none)


def _guard(vanilla: list[tuple[int, str]], policy: list[tuple[int, str]], lane_size: int = 2) -> guards.Guard:
    records = _records({"v": vanilla, "p": policy}, lane_size)
    return guards.guards(records, {"v": "v", "p": "v"})["p", "task"]


responses = st.lists(st.tuples(st.integers(0, 64), st.sampled_from(["eos", "stop", "length"])), min_size=1, max_size=24)


@given(responses, st.integers(1, 5))
def test_identical_responses_are_never_flagged(given_responses: list[tuple[int, str]], lane_size: int) -> None:
    same = _guard(given_responses, given_responses, lane_size)
    assert same.flag == guards.INSIDE
    assert same.new_tokens_difference.value == same.length_stop_share_difference.value == 0


@given(responses, responses, st.integers(1, 5))
def test_a_flag_names_what_moved_and_which_way(
    vanilla: list[tuple[int, str]], policy: list[tuple[int, str]], lane_size: int
) -> None:
    shared = min(len(vanilla), len(policy))
    there = _guard(vanilla[:shared], policy[:shared], lane_size)
    back = _guard(policy[:shared], vanilla[:shared], lane_size)
    assert there.new_tokens_difference.value == pytest.approx(-back.new_tokens_difference.value)
    for word, size in (("longer", there.new_tokens_difference), ("more cut off", there.length_stop_share_difference)):
        assert (word not in there.flag) or size.value > 0
    assert ("more cut off" in there.flag) == ("fewer cut off" in back.flag)  # this band does not depend on vanilla


def test_worked_by_hand() -> None:
    vanilla = [(10, "eos"), (20, "eos"), (10, "eos"), (20, "eos"), (10, "stop"), (20, "stop")]
    policy = [(14, "eos"), (24, "eos"), (16, "eos"), (24, "length"), (12, "stop"), (26, "length")]
    guard = _guard(vanilla, policy)
    # per lane: sums of 38, 40, 38 tokens; 8, 10, 8 more than vanilla's; 0, 1, 1 cut off
    assert guard.new_tokens == ratio_of_sums([38, 40, 38], [2, 2, 2])
    assert guard.new_tokens_difference == ratio_of_sums([8, 10, 8], [2, 2, 2])
    assert guard.length_stop_share.value == pytest.approx(1 / 3)
    assert guard.length_stop_share_difference.value == pytest.approx(1 / 3)
    assert guard.length_stop_share_difference.low is not None and guard.length_stop_share_difference.low < 0
    assert guard.flag == "longer, more cut off", "three lanes cannot exclude chance, but a third cut off is no detail"


def test_size_and_chance_must_agree() -> None:
    sure = {"low": 0.1, "high": 2.0, "se": 0.5, "df": 9.0}
    assert guards.outside(Estimate(value=1.1, **sure), 1.0) == 1
    assert guards.outside(Estimate(value=0.9, **sure), 1.0) == 0
    assert guards.outside(Estimate(value=1.9, **sure | {"low": -0.1}), 1.0) == 0
    assert guards.outside(Estimate(value=2.1, **sure | {"low": -0.1}), 1.0) == 1
    assert guards.outside(Estimate(value=-1.1, **sure | {"low": -2.0, "high": -0.1}), 1.0) == -1


def test_one_lane_is_held_to_twice_the_band() -> None:
    vanilla = [(10, "eos")] * 20
    assert _guard(vanilla, [(12, "eos")] * 20, lane_size=20).flag == ""
    assert _guard(vanilla, [(13, "eos")] * 20, lane_size=20).flag == "longer"
    assert _guard(vanilla, [(7, "eos")] * 20, lane_size=20).flag == "shorter"
    assert _guard(vanilla, [(10, "length")] * 2 + vanilla[2:], lane_size=20).flag == ""
    assert _guard(vanilla, [(10, "length")] * 3 + vanilla[3:], lane_size=20).flag == "more cut off"
    assert _guard([(10, "length")] * 20, [(5, "eos")] * 20, lane_size=20).flag == "shorter, fewer cut off"


def test_no_change_is_not_certainty() -> None:
    guard = _guard([(10, "eos"), (12, "eos")] * 8, [(10, "eos"), (12, "eos")] * 8)
    assert guard.new_tokens == Estimate(value=11.0)  # all lanes alike
    assert guard.new_tokens_difference == Estimate(value=0.0)
    assert guard.length_stop_share_difference == paired_difference(np.zeros(16), np.zeros(16), np.arange(16) // 2)


def test_choices_and_cells_without_vanilla() -> None:
    records = _records({"p": [(10, "eos")] * 4, "choices": [(0, "scored")] * 4}, 2)
    found = guards.guards(records, {"p": "", "choices": ""})
    assert list(found) == [("p", "task")]
    assert found["p", "task"].flag == guards.NOTHING_TO_COMPARE
    assert math.isnan(found["p", "task"].new_tokens_difference.value)


def test_only_shared_requests_are_compared_and_repeats_count() -> None:
    records = _records({"v": [(10, "eos")] * 6, "p": [(10, "eos")] * 4}, 2)
    records.responses["doc_id"] = records.responses["request"] // 2
    guard = guards.guards(records, {"v": "v", "p": "v"})["p", "task"]
    assert guard.new_tokens_difference.value == 0.0


def test_flags_of_several_rows() -> None:
    assert guards.together(["", "-"]) == ""
    assert guards.together(["-", "-"]) == "-"
    assert guards.together(["more cut off", "", "longer", "shorter, more cut off"]) == "longer, shorter, more cut off"
    assert not any(map(guards.is_flagged, ("", "-", float("nan"))))


@pytest.fixture(scope="module")
def flagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flagged")
    for policy in (POLICIES[0], POLICIES[1], POLICIES[6], BROKEN):
        for task in ("mini_gsm8k", "mini_truthfulqa"):
            for batch_size in (2, 4):
                kl = None if policy.name == "vanilla" else 0.1
                write_cell(root, policy=policy, task=task, batch_size=batch_size, documents=32, kl=kl)
    return root


def test_the_frame(flagged: Path) -> None:
    rows = results(load(flagged))
    broken = rows["policy"] == "random_keep"
    choices = rows["subtask"] == "mini_truthfulqa_mc1"
    assert set(rows.loc[~broken & ~choices, "guard"]) == {""}
    assert set(rows.loc[broken & ~choices, "guard"]) == {"longer, more cut off"}
    assert set(rows.loc[choices, "guard"]) == {"-"} and rows.loc[choices, "new_tokens"].isna().all()
    row = rows[broken & ~choices].iloc[0]
    tokens = [LENGTH_LIMIT if doc % 5 == 0 else 11 + doc % 5 for doc in range(32)]
    assert row["new_tokens"] == pytest.approx(np.mean(tokens))
    assert row["new_tokens_difference"] == pytest.approx(np.mean(tokens) - np.mean([8 + doc % 5 for doc in range(32)]))
    assert row["length_stop_share"] == row["length_stop_share_difference"] == 7 / 32
    for name in ("new_tokens", "new_tokens_difference", "length_stop_share", "length_stop_share_difference"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]


def test_macro_means_name_the_subtasks(flagged: Path) -> None:
    records = load(flagged)
    means = summary(records, results(records))
    broken = means[means["policy"] == "random_keep"]
    assert set(broken["guard"]) == {"longer, more cut off"}
    assert set(broken["guarded"]) == {"mini_gsm8k, mini_truthfulqa_gen"}
    assert set(means.loc[means["policy"] != "random_keep", "guard"]) == {""}


def _printed(root: Path, csv: Path | None = None) -> str:
    stream = io.StringIO()
    print_table(root, console=Console(file=stream, width=100), csv=csv, by="all")
    return stream.getvalue()


def test_the_table_and_its_csv(flagged: Path, tmp_path: Path) -> None:
    text = _printed(flagged, tmp_path / "table.csv")
    kept = [line for line in text.splitlines() if not line.startswith("wrote ")]
    assert max(map(len, kept)) <= 100
    # two subtasks that generate at two batch sizes, two means, two of distance, two of hardware; choices are not marked
    assert text.count(f"\n{LABEL} !") == 4 + 2 + 2 + 2
    assert text.count(f"\n! {LABEL}: 21.0 tokens a response, vanilla 9.9; 22 % cut off, vanilla 0 %") == 4
    assert text.count(f"\n! {LABEL}: longer, more cut off in mini_gsm8k, mini_truthfulqa_gen\n") == 2
    assert "!: responses outside vanilla's band" in text
    for name in ("table.csv", "table_summary.csv"):
        read = pd.read_csv(tmp_path / name, keep_default_na=False)
        assert set(read.loc[read["guard"].str.contains("longer"), "policy"]) == {"random_keep"}


def test_nothing_is_marked_where_nothing_is_flagged(tmp_path: Path) -> None:
    for policy in (POLICIES[0], POLICIES[1], POLICIES[6]):
        write_cell(tmp_path, policy=policy)
    assert "!" not in _printed(tmp_path)


@pytest.mark.slow
def test_every_figure_rings_the_point(flagged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[list[str]] = []
    plain = style.legend

    def spy(fig: Any, handles: Any, names: list[str], columns: int = 1) -> None:
        labels.append(list(names))
        plain(fig, handles, names, columns)

    monkeypatch.setattr(style, "legend", spy)
    tables = [
        path for path in write_figures(flagged, out=tmp_path) if path.suffix == ".csv" and "families" not in path.stem
    ]
    assert {path.stem for path in tables} == {
        *("pareto_speedup", "pareto_speedup_tasks", "pareto_active", "pareto_active_tasks"),
        *("active_vs_batch", "step_vs_active", "step_vs_bytes", "matched_active_b2", "fig17"),
        *("matched_active_b4", "table2_b2", "table2_b4"),
    }
    for path in tables:
        numbers = pd.read_csv(path, keep_default_na=False)
        assert set(numbers.loc[numbers["guard"].map(guards.is_flagged), "policy"]) == {"random_keep"}, path.name
    assert len(labels) == len(tables) - 2, "a figure each, and two tables in LaTeX"
    for file in tmp_path.glob("table2_*.tex"):
        flagged_rows = [line for line in file.read_text().splitlines() if "dagger}" in line]
        assert flagged_rows and all("random\\_keep" in line for line in flagged_rows)
    assert all(names.count("responses longer or shorter than vanilla's") == 1 for names in labels)


def test_a_harmless_study_has_no_ring(study: Path) -> None:
    rows = results(load(study))
    assert looks.ring_entry(rows) == ([], [])
    assert len(rows) == 50 and set(SUBTASKS) >= set(rows["task"])
