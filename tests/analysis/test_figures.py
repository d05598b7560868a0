"""Figures: what is drawn, what is left out and why, and that the same numbers give the same bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_study import POLICIES, strip_hardware
from hypothesis import given
from hypothesis import strategies as st

from analysis import write_figures
from analysis.figures import looks, step_vs_bytes, style
from analysis.figures.active_vs_batch import expected_active
from analysis.figures.step_vs_active import least_squares
from analysis.study import study as analysed
from tests.quick_figures import printed_figures

Write = Callable[..., Path]
FIGURES = (
    *("pareto_speedup", "pareto_speedup_tasks", "pareto_active", "pareto_active_tasks"),
    *("active_vs_batch", "step_vs_active", "step_vs_bytes", "fig17"),
)


@pytest.fixture(scope="module")
def drawn(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures")
    with printed_figures():
        written = write_figures(study, out=out)
    families = {f"pareto_{saving}_families.csv" for saving in ("speedup", "active")}
    tables = {f"table2_b{batch}.{end}" for batch in (4, 16) for end in ("tex", "csv")}
    expected = {f"{name}.{end}" for name in FIGURES for end in ("pdf", "png", "csv")} | families | tables
    assert {path.name for path in written} == expected
    return out


def test_files_are_pictures_of_one_column(drawn: Path) -> None:
    for name in FIGURES:
        png = (drawn / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(png[16:20]) == round(300 * style.WIDTH_IN)
        pdf = (drawn / f"{name}.pdf").read_bytes()
        assert b"/Type3" not in pdf
        assert b"CreationDate" not in pdf


def test_pareto_numbers(drawn: Path) -> None:
    macro = pd.read_csv(drawn / "pareto_speedup.csv")
    assert len(macro) == 5 * 2
    vanilla = macro[macro["policy"] == "vanilla"]
    assert vanilla["x"].tolist() == [1.0, 1.0]
    assert vanilla["y"].tolist() == [0.0, 0.0]
    quarter = macro[macro["series"] == "lynx_v1_latency(keep_experts=4)"]
    assert quarter["frontier"].all()  # the fastest
    assert (macro["x"].idxmax() == quarter["x"].idxmax()) and (quarter["y"] < 0).all()
    tasks = pd.read_csv(drawn / "pareto_active_tasks.csv")
    assert len(tasks) == 5 * 5 * 2


def test_active_numbers_and_closed_form(drawn: Path) -> None:
    numbers = pd.read_csv(drawn / "active_vs_batch.csv")
    at_four = numbers[numbers["batch_size"] == 4]
    assert at_four["uniform_routing"].unique() == pytest.approx([16 * (1 - (7 / 8) ** 4)])
    assert expected_active([1], 16, 2) == pytest.approx([2.0])
    wide = numbers.pivot(index="series", columns="batch_size", values="active_experts")
    assert (wide[16] > wide[4]).all()


def test_tpot_line(drawn: Path) -> None:
    numbers = pd.read_csv(drawn / "step_vs_active.csv")
    assert len(numbers) == 5 * 4 * 2
    assert numbers["r_squared"].min() > 0.9
    assert numbers["slope"].between(0.3, 0.4).all()  # the records were made with 0.35 ms per expert
    fit = least_squares(pd.Series([1.0, 2.0, 3.0]), pd.Series([5.0, 7.0, 9.0]))
    assert fit is not None
    assert (fit.intercept, fit.slope, fit.r_squared) == pytest.approx((3.0, 2.0, 1.0))
    assert least_squares(pd.Series([1.0, 1.0, 2.0]), pd.Series([5.0, 7.0, 9.0])) is None


def test_points_lie_where_bytes_and_the_copy_put_them(drawn: Path) -> None:
    numbers = pd.read_csv(drawn / "step_vs_bytes.csv")
    assert len(numbers) == 5 * 4 * 2 and (numbers["copy_gb_s"] == 20.0).all()
    assert numbers["x"].to_numpy() == pytest.approx(1000 * numbers["step_gb"].to_numpy() / 20.0)
    assert (numbers["x"] < numbers["y"]).all() and numbers["s_mbu"].between(0.3, 0.6).all()
    # shares are means of rates of single steps, times means over windows of their medians
    assert (numbers["x"] / numbers["y"]).to_numpy() == pytest.approx(numbers["s_mbu"].to_numpy(), rel=0.05)


def test_without_bytes_on_record_the_figure_is_not_missed(
    cell: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in cells of before they were counted."""
    strip_hardware(cell())
    with caplog.at_level(logging.WARNING):
        assert step_vs_bytes.draw(analysed(tmp_path), tmp_path, "") == []
        assert "step_vs_bytes" not in caplog.text
        assert write_figures(tmp_path, only="step_vs_bytes") == []
    assert "figure step_vs_bytes skipped: no cell has the bytes" in caplog.text


POLICY_NAMES = [
    *(path.stem for path in (Path(__file__).parents[2] / "lynx_exp/routing/policies").glob("[!_]*.py")),
    "noise_floor",
]


@given(st.lists(st.sampled_from([*POLICY_NAMES, "mine", "yours", "theirs"]), min_size=1, max_size=20, unique=True))
def test_where_colour_tells_the_batch_no_two_policies_share_a_marker(policies: list[str]) -> None:
    """As `lynx` and `coverage` do elsewhere, in two colours."""
    found = looks.markers(pd.DataFrame({"series": policies, "policy": policies}))
    assert set(found) == set(policies) and len(set(found.values())) == len(policies)
    assert "lynx" not in found or found["lynx"] == "o"


def test_same_numbers_same_bytes(study: Path, drawn: Path, tmp_path: Path) -> None:
    with printed_figures():
        written = write_figures(study, out=tmp_path, only="active_vs_batch")
    for path in written:
        assert path.read_bytes() == (drawn / path.name).read_bytes()


def test_only_and_default_folder(cell: Write, tmp_path: Path) -> None:
    cell()
    cell(policy=POLICIES[5])
    written = write_figures(tmp_path, only="step_vs_active")
    assert [path.parent for path in written] == [tmp_path / "figures"] * 3
    with pytest.raises(ValueError, match="figure 'pie' is unknown; known: pareto, active_vs_batch, step_vs_active, "):
        write_figures(tmp_path, only="pie")


def test_no_timing_skips_with_a_reason(cell: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for policy in (POLICIES[0], POLICIES[5]):
        cell(policy=policy, repeats=0)
    with caplog.at_level(logging.WARNING):
        names = {path.stem for path in write_figures(tmp_path) if path.suffix == ".pdf"}
    assert names == {"pareto_active", "pareto_active_tasks", "active_vs_batch"}
    assert "figure pareto_speedup skipped: no timed cell has a vanilla partner" in caplog.text
    assert "figure step_vs_active skipped: no cell was timed" in caplog.text


def test_what_is_left_out_stands_on_the_figure(cell: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(style, "note", lambda fig, lines: said.extend(lines))
    for policy in (POLICIES[0], POLICIES[5]):
        cell(policy=policy)
    cell(policy=POLICIES[8], repeats=0)
    cell(policy=POLICIES[6], seed=5)
    write_figures(tmp_path, only="pareto")
    assert "not drawn, no vanilla partner: lynx_v1_latency(keep_experts=8)" in said
    assert "not drawn, no decode speed-up on record: top_k(k=1)" in said


def test_many_batch_sizes_are_spread_over_files(cell: Write, tmp_path: Path) -> None:
    for batch_size in (1, 2, 4):
        for policy in (POLICIES[0], POLICIES[5]):
            cell(policy=policy, batch_size=batch_size, documents=8, repeats=0)
    names = {path.stem for path in write_figures(tmp_path, only="pareto") if path.suffix == ".pdf"}
    assert names == {"pareto_active", "pareto_active_tasks_b1-2", "pareto_active_tasks_b4"}


def test_no_vanilla_at_all_skips_the_pareto(cell: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cell(policy=POLICIES[5])
    with caplog.at_level(logging.WARNING):
        assert write_figures(tmp_path, only="pareto") == []
    assert caplog.text.count("skipped") == 4


def test_settings_get_their_own_files(cell: Write, tmp_path: Path) -> None:
    for model in ("one", "org/two"):
        cell(model=model)
    names = {path.name for path in write_figures(tmp_path, only="active_vs_batch")}
    assert {"active_vs_batch-model-one.pdf", "active_vs_batch-model-org-two.pdf"} <= names


def test_looks_tell_policies_and_parameters_apart() -> None:
    frame = pd.DataFrame(
        {
            "series": ["vanilla", "lynx(3)", "lynx(1)", "own_idea"],
            "policy": ["vanilla", "lynx", "lynx", "own_idea"],
            "policy_params": ["{}", '{"alpha": 3.0, "beta": 2}', '{"alpha": 1.0, "beta": 2}', "{}"],
            "phases": "decode",
        }
    )
    look = looks.looks(frame)
    assert look["lynx(3)"].marker == look["lynx(1)"].marker != look["own_idea"].marker
    assert len({(one.marker, one.color, one.fill) for one in look.values()}) == 4
    assert looks.family_entries(frame, look)[1] == ["vanilla", "lynx(alpha = 3, 1)", "own_idea"]
    frame["policy_params"] = ["{}", '{"alpha": 3.0, "beta": 2}', '{"alpha": 1.0, "beta": 1}', "{}"]
    assert looks.family_entries(frame, look)[1][1] == "lynx, (alpha, beta) = (3, 2), (1, 1)"
    assert np.all([len(one.faint().color) == 7 for one in look.values()])
