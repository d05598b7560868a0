"""Several responses to a document: avg@k and pass@k by hand, intervals on a world whose truth is known, the table."""

from __future__ import annotations

import io
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_study import POLICIES, write_cell
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analysis import load, print_table, statistics
from analysis.attempts import attempts
from analysis.compare import results
from analysis.study import study

VANILLA, LYNX = POLICIES[0], POLICIES[4]


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6), st.data())
def test_values_of_pass_at_k_are_those_of_all_subsets(scores_DN: list[list[float]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 4))
    documents = np.repeat(np.arange(len(scores_DN)), 4)
    values = statistics.pass_values(np.ravel(scores_DN), documents, k)
    subsets = [np.mean([max(some) for some in combinations(scores, k)]) for scores in scores_DN]
    assert statistics.per_document(values, documents) == pytest.approx(np.array(subsets))
    if k == 1:
        assert values == pytest.approx(np.ravel(scores_DN)), "pass@1 is the score"


def test_pass_at_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="k=3: must be at most 2, the responses of a document"):
        statistics.pass_values([1, 0, 1, 1], [0, 0, 1, 1], 3)


DOCUMENTS, N, LANE = 96, 4, 8


def _world(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Scores [M] of vanilla and policy, documents and lanes of the responses. Documents are easy or hard, and the
    policy spoils a share of the right answers that depends on the lane; on average a quarter."""
    right_D = rng.beta(1.0, 1.0, DOCUMENTS)
    document = np.repeat(np.arange(DOCUMENTS), N)
    lane = rng.permutation(len(document)) // LANE
    spoiled_G = rng.choice([0.05, 0.45], size=lane.max() + 1)
    vanilla = (rng.random(len(document)) < right_D[document]).astype(float)
    policy = vanilla * (rng.random(len(document)) >= spoiled_G[lane])
    return policy, vanilla, document, lane


def _passing(kept: float, k: int) -> float:
    """pass@k over documents whose chance is uniform, of which `kept` is left: 1 - E[(1 - kept p)^k]."""
    return 1.0 - (1.0 - (1.0 - kept) ** (k + 1)) / (kept * (k + 1))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_intervals_hold_the_truth(k: int) -> None:
    """By lane alone a score's interval is too narrow: the responses to a hard document are alike in whatever lane."""
    truth, worlds = {"score": _passing(1.0, k), "difference": _passing(0.75, k) - _passing(1.0, k)}, 300
    held = dict.fromkeys((*truth, "lanes alone"), 0)
    for seed in range(worlds):
        policy, vanilla, document, lane = _world(np.random.default_rng(seed))
        own, before = (statistics.pass_values(scores, document, k) for scores in (policy, vanilla))
        found = {
            "score": statistics.mean(before, lane, document),
            "difference": statistics.paired_difference(own, before, lane, document),
        }
        found["lanes alone"] = statistics.mean_of(before, lane)
        for name, estimate in found.items():
            assert estimate.low is not None and estimate.high is not None
            held[name] += estimate.low <= truth.get(name, truth["score"]) <= estimate.high
    assert held["score"] >= 0.92 * worlds and held["difference"] >= 0.92 * worlds, held
    assert held["lanes alone"] < 0.88 * worlds, held


def test_a_document_counts_once() -> None:
    """Ten times the same answers are no more documents: the interval is that of one response to each."""
    scores = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0] * 8)
    document = np.arange(len(scores))
    once = statistics.mean(scores, document)
    ten = statistics.mean(np.tile(scores, 10), np.arange(10 * len(scores)), np.tile(document, 10))
    assert ten.low == pytest.approx(once.low, abs=0.01) and ten.high == pytest.approx(once.high, abs=0.01)


@pytest.fixture
def tried(tmp_path: Path) -> Path:
    for policy in (VANILLA, LYNX):
        write_cell(tmp_path, policy=policy, documents=32, tries=4, repeats=0)
    return tmp_path


def test_each_response_is_a_row_in_its_own_lane(tried: Path) -> None:
    records = load(tried)
    rows = attempts(records.samples, records.responses)
    assert len(rows) == 4 * len(records.samples) == 2 * 32 * 4
    assert (
        rows["attempt"].is_unique is False and rows.groupby("cell_id", observed=True)["attempt"].nunique().eq(128).all()
    )
    assert rows.groupby(["cell_id", "doc_id"], observed=True)["lane"].nunique().eq(4).all()
    whole = rows.groupby(["cell_id", "doc_id"], observed=True)["score"].mean().to_numpy()
    assert whole == pytest.approx(records.samples.sort_values(["cell_id", "doc_id"])["score"].to_numpy())


def test_without_repeats_nothing_changes(tmp_path: Path) -> None:
    write_cell(tmp_path, documents=16, repeats=0)
    records = load(tmp_path)
    rows = attempts(records.samples, records.responses)
    pd.testing.assert_frame_equal(rows.drop(columns="attempt"), records.samples)
    (row,) = results(records).to_dict("records")
    assert row["document_repeats"] == 1 and np.isnan(row["pass_at_k"])


def test_score_and_pass_at_k_of_a_cell(tried: Path) -> None:
    records = load(tried)
    rows = {row["policy"]: row for row in results(records).to_dict("records")}
    of = records.samples[records.samples["cell_id"] == rows["lynx"]["cell_id"]]
    scores_DN = np.stack(of["repeat_scores"].to_numpy())
    assert rows["lynx"]["document_repeats"] == 4 and rows["lynx"]["documents"] == 32 and rows["lynx"]["lanes"] == 32
    assert rows["lynx"]["score"] == pytest.approx(100 * scores_DN.mean())
    assert rows["lynx"]["pass_at_k"] == pytest.approx(100 * (scores_DN.max(axis=1)).mean())
    for name in ("score", "difference"):
        assert rows["lynx"][f"{name}_low"] < rows["lynx"][name] < rows["lynx"][f"{name}_high"]
    change = rows["lynx"]["pass_at_k"] - rows["vanilla"]["pass_at_k"]
    assert rows["lynx"]["pass_at_k_difference"] == pytest.approx(change) and change < 0
    assert rows["lynx"]["better"] + rows["lynx"]["worse"] <= 32 and np.isnan(rows["lynx"]["p_mcnemar"])
    assert rows["lynx"]["tokens_per_solved"] == pytest.approx(
        records.responses[records.responses["cell_id"] == rows["lynx"]["cell_id"]]["new_tokens"].sum() / scores_DN.sum()
    )


def test_plans_are_pooled_by_document(tmp_path: Path) -> None:
    for policy in (VANILLA, LYNX):
        for plan in (0, 1):
            write_cell(tmp_path, policy=policy, documents=32, tries=2, repeats=0, plan_seed=plan)
    rows = study(tmp_path).rows.set_index("policy")
    assert rows.loc["lynx", "plans"] == 2 and rows.loc["lynx", "documents"] == 32
    assert rows.loc["lynx", "difference_low"] < rows.loc["lynx", "difference"] < 0


def test_the_table_says_both(tried: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    print_table(tried, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "repeats: mini_gsm8k" in text and "avg@n" in text and "pass@n" in text and "exact_match, avg@4, %" in text


def test_the_page_has_the_same_block(tried: Path) -> None:
    from analysis.page.document import page

    text = page(tried)
    console = Console(file=io.StringIO(), width=120)
    print_table(tried, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    block = printed[printed.index("repeats: mini_gsm8k") :]
    (html,) = re.findall(r"repeats: mini_gsm8k.*?<table.*?</table>", text, re.DOTALL)
    cells = [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[dh].*?</t[dh]>", html, re.DOTALL)]
    assert {"n", "avg@n", "pass@n"} <= set(cells)
    numbers = [word for cell in cells for word in re.findall(r"-?\d+\.\d", cell)]
    assert numbers and all(number in block for number in numbers)
    assert "avg@n: mean score of n responses to a document" in re.sub(r"<[^>]+>", "", text)
