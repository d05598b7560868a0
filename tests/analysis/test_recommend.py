"""The setting to take: the fastest that is shown to be as good, and a reason for every other."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from fake_study import POLICIES, FakePolicy
from rich.console import Console

from analysis import verdicts
from analysis.conclusion import conclusions
from analysis.frontiers import ACTIVE
from analysis.recommendation import ALL, ALONE, RECOMMENDED, print_recommendations, recommendations
from analysis.results_table import print_rows
from analysis.study import Study
from analysis.study import study as read_study
from lynx_exp.results.main import main

Write = Callable[..., Path]
FAST = FakePolicy(name="lynx_v1_latency", params={"keep_experts": 4}, keep=0.38)
MILD = FakePolicy(name="lynx", params={"alpha": 3.0}, keep=0.8)
HARMFUL = FakePolicy(name="top_k", params={"k": 1}, keep=0.3, harm=0.5)
LONG = FakePolicy(name="oea", params={"k0": 1}, keep=0.35, longer=8)
PROBE = FakePolicy(name="random_keep", params={"keep_experts": 8}, keep=0.2)
MANY = 1200
"""Documents with which an unchanged score is within one point, in lanes of four: 300, of 236 needed."""


def reasons(root: Path, scope: str = "mini_gsm8k", **more: float) -> dict[str, str]:
    frame = recommendations(read_study(root, **more))
    chosen = frame[frame["scope"] == scope]
    return dict(zip(chosen["policy"], chosen["why"], strict=True))


def test_the_fastest_of_those_that_lose_nothing(cell: Write, tmp_path: Path) -> None:
    for policy in (POLICIES[0], POLICIES[1], FAST, MILD, HARMFUL, LONG, PROBE):
        cell(policy=policy, documents=MANY)
    found = reasons(tmp_path)
    assert found["lynx_v1_latency"] == RECOMMENDED
    assert found["lynx"].startswith("within, but slower: 1.")
    assert found["top_k"] == "worse than vanilla"
    assert found["oea"] == "within, but look at its responses: longer"
    assert set(found) == {"lynx_v1_latency", "lynx", "top_k", "oea"}, "no vanilla, no control, no probe"


def test_too_few_documents_recommend_nothing(cell: Write, tmp_path: Path) -> None:
    for policy in (POLICIES[0], FAST):
        cell(policy=policy, documents=64)
    assert reasons(tmp_path)["lynx_v1_latency"] == "undecided: 357 documents"
    assert reasons(tmp_path, margin=4.0)["lynx_v1_latency"].startswith("undecided: ")
    assert reasons(tmp_path, margin=20.0)["lynx_v1_latency"] == RECOMMENDED


def test_without_latency_the_fewest_experts(cell: Write, tmp_path: Path) -> None:
    for policy in (POLICIES[0], FAST, MILD):
        cell(policy=policy, documents=MANY, repeats=0)
    frame = recommendations(read_study(tmp_path))
    assert set(frame["saving"]) == {"active_experts"}
    assert frame["why"].tolist()[0] == RECOMMENDED and frame["policy"].tolist()[0] == "lynx_v1_latency"
    assert frame["why"].tolist()[1].startswith("within, but more experts: ")


def test_as_many_experts_as_vanilla_are_no_gain(cell: Write, tmp_path: Path) -> None:
    """A policy that does nothing here (lynx at batch size 1, say) is within any margin."""
    for policy in (POLICIES[0], replace(MILD, keep=1.0)):
        cell(policy=policy, documents=MANY, repeats=0)
    assert reasons(tmp_path) == {"lynx": "within, but as many experts as vanilla"}
    assert "no setting is shown to be within ±1 and to save anything" in conclusions(read_study(tmp_path))[0]


def test_what_is_ranked_by_may_be_chosen(cell: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for policy in (POLICIES[0], FAST, MILD):
        cell(policy=policy, documents=MANY)
    frame = recommendations(read_study(tmp_path), ACTIVE)
    assert set(frame["saving"]) == {"active_experts"} and frame["value"].is_monotonic_increasing
    main(["recommend", str(tmp_path), "--by", "active_experts"])
    assert "active experts" in capsys.readouterr().out.splitlines()[1]


def test_what_was_not_timed_does_not_race(cell: Write, tmp_path: Path) -> None:
    for policy, repeats in ((POLICIES[0], 5), (MILD, 5), (FAST, 0)):
        cell(policy=policy, documents=MANY, repeats=repeats)
    found = reasons(tmp_path)
    assert found == {"lynx": RECOMMENDED, "lynx_v1_latency": "within, but no decode speed-up on record"}


def test_slower_than_vanilla_is_no_gain(cell: Write, tmp_path: Path) -> None:
    for policy in (POLICIES[0], FakePolicy(name="lynx", params={"alpha": 9.0}, keep=1.1)):
        cell(policy=policy, documents=MANY)
    assert reasons(tmp_path) == {"lynx": "within, but no faster than vanilla"}


def test_over_all_subtasks_only_what_did_all(cell: Write, tmp_path: Path) -> None:
    for task in ("mini_gsm8k", "mini_humaneval"):
        for policy in (POLICIES[0], MILD):
            cell(policy=policy, task=task, documents=MANY)
    cell(policy=FAST, documents=MANY)
    found = reasons(tmp_path, scope=ALL)
    assert found == {"lynx": RECOMMENDED, "lynx_v1_latency": "only 1 of 2 subtasks done"}
    assert reasons(tmp_path)["lynx_v1_latency"] == RECOMMENDED


def test_only_rivals_that_could_be_chosen_count_as_many(cell: Write, tmp_path: Path) -> None:
    for task in ("mini_gsm8k", "mini_humaneval"):
        for policy in (POLICIES[0], MILD):
            cell(policy=policy, task=task, documents=640)
    for keep_experts in range(4, 13):
        policy = FakePolicy(name="lynx_v1_latency", params={"keep_experts": keep_experts}, keep=0.38)
        cell(policy=policy, documents=640)
    cell(policy=FakePolicy(name="keep_ranks", params={"ranks": 1}), documents=640)
    frame = recommendations(read_study(tmp_path))
    assert "keep_ranks" not in set(frame["policy"]), "a probe"
    (mild,) = frame[(frame["scope"] == ALL) & (frame["policy"] == "lynx")].to_dict("records")
    assert mild["why"] == RECOMMENDED and mild["p_within"] < 0.05, "not times ten"
    of_task = frame[(frame["scope"] == "mini_gsm8k") & (frame["policy"] == "lynx")]
    assert of_task["p_within"].item() > 0.05, "there, all ten are rivals"


def test_within_alone_but_not_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The headline names what the table shows as within the margin, and says why it is no recommendation."""
    rows = [
        ("long", verdicts.WITHIN, 4.0, "within, but look at its responses: longer"),
        ("mild", verdicts.WITHIN, 7.2, ALONE),
        ("open", verdicts.OPEN, 5.5, "undecided: 1,281 documents"),
        ("bad", verdicts.WORSE, 3.0, "worse than vanilla"),
    ]
    frame = pd.DataFrame(rows, columns=["series", "verdict", "value", "why"]).assign(
        setting="", batch_size=16, scope=ALL, saving="active_experts", documents_needed=1281.0
    )
    monkeypatch.setattr("analysis.conclusion.recommendations", lambda study: frame)
    assert conclusions(SimpleNamespace(margin=1.0)) == [  # type: ignore[arg-type]
        "batch size 16: no setting is shown to be within ±1 as one of 4 and to save anything; taken alone mild is, at "
        "7.2 active experts; 1 of 4 settings loses more than chance"
    ]


@pytest.mark.parametrize(("saving", "named"), [("speedup", "faster"), ("active_experts", "slower")])
def test_documents_are_asked_for_of_what_saves_something(
    saving: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fewest would do for a setting that is no faster than vanilla: nobody needs to know of it."""
    rows = [("slower", 0.97, 310.0), ("faster", 1.4, 640.0)]
    frame = pd.DataFrame(rows, columns=["series", "value", "documents_needed"]).assign(
        setting="", batch_size=1, scope=ALL, saving=saving, verdict=verdicts.OPEN, why="undecided"
    )
    frame["saves"] = [saving == "active_experts", True]
    monkeypatch.setattr("analysis.conclusion.recommendations", lambda study: frame)
    (line,) = conclusions(SimpleNamespace(margin=1.0))  # type: ignore[arg-type]
    assert f"; {named} would take" in line


def test_a_phase_is_named(cell: Write, tmp_path: Path) -> None:
    for policy, phases in ((POLICIES[0], "decode"), (FAST, "both"), (FAST, "decode")):
        cell(policy=policy, documents=64, phases=phases)
    assert "[both]" in printed(tmp_path), "no markup"


def test_no_vanilla_no_recommendation(cell: Write, tmp_path: Path) -> None:
    cell(policy=FAST, documents=32)
    assert reasons(tmp_path) == {"lynx_v1_latency": "no vanilla partner to compare with"}


def printed(root: Path, **more: float) -> str:
    stream = io.StringIO()
    print_recommendations(read_study(root, **more), Console(file=stream, width=100))
    return stream.getvalue()


def print_all(found: Study, console: Console) -> None:
    print_rows(found.rows, found.summary, console, by="mean", sort="policy")


def test_the_command_prints_and_writes(cell: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for policy in (POLICIES[0], FAST, MILD):
        cell(policy=policy, documents=64)
    cell(policy=HARMFUL, documents=64, state="failed")
    main(["recommend", str(tmp_path), "--margin", "20", "--csv", str(tmp_path / "out" / "all.csv")])
    out = capsys.readouterr().out
    assert "mini_gsm8k · batch size 4" in out and "recommended" in out and "±20" in out
    assert "missing: 1 cell not finished (1 failed: MemoryError)" in out
    assert max(len(line.rstrip()) for line in out.splitlines() if not line.startswith("wrote")) <= 100
    assert pd.read_csv(tmp_path / "out" / "all.csv")["why"].eq(RECOMMENDED).sum() == 1
    assert "none: no candidate is shown to be within ±1 and to save anything" in printed(tmp_path)


@pytest.mark.parametrize(("margin", "text"), [("0", "margin=0: must be above 0"), ("-2", "margin=-2: must be above 0")])
def test_a_bad_margin_is_one_line(study: Path, margin: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["recommend", str(study), f"--margin={margin}"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("lynx-results: error: ") and text in err and err.count("\n") == 1


@pytest.mark.parametrize(("documents", "told"), [(4, True), (8, False)])
def test_a_single_lane_is_told_how_to_become_two(documents: int, told: bool, cell: Write, tmp_path: Path) -> None:
    for policy in (POLICIES[0], FAST):
        cell(policy=policy, documents=documents)
    assert (reasons(tmp_path)["lynx_v1_latency"] == "no interval: a single lane") == told
    stream = io.StringIO()
    for command in (print_recommendations, print_all):
        command(read_study(tmp_path), Console(file=stream, width=100))
    assert stream.getvalue().count("One lane alone has no interval: a lane takes batch_size") == 2 * told


def test_nothing_but_vanilla(cell: Write, tmp_path: Path) -> None:
    cell()
    assert "no candidate" in printed(tmp_path)
