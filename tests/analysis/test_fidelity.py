"""Distance from vanilla: estimates clustered by lane, the table, the figure."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from fake_study import POLICIES, write_cell
from rich.console import Console

from analysis import load, print_table, write_figures
from analysis.compare import results
from analysis.figures.matched_active import _line
from analysis.macro import summary
from analysis.statistics import ratio_of_sums


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    for task in ("mini_gsm8k", "mini_wmt16"):
        write_cell(tmp_path, task=task, repeats=0)
        for policy, kl in zip(POLICIES[2:7], (0.002, 0.01, 0.05, 0.2, 0.004), strict=True):
            write_cell(tmp_path, policy=policy, task=task, repeats=0, kl=kl)
    return tmp_path


def test_kl_is_a_mean_over_tokens_clustered_by_lane(tmp_path: Path) -> None:
    write_cell(tmp_path, policy=POLICIES[2], repeats=0, documents=16, batch_size=4, kl=0.01)
    row = results(load(tmp_path)).iloc[0]
    tokens = [sum(1 + doc % 5 for doc in range(4 * lane, 4 * lane + 4)) for lane in range(4)]
    sums = [10.0 * (lane + 1) * count for lane, count in enumerate(tokens)]  # millinats
    expected = ratio_of_sums(sums, tokens)
    assert row["kl"] == pytest.approx(sum(sums) / sum(tokens))
    assert (row["kl_low"], row["kl_high"]) == pytest.approx((expected.low, expected.high))
    differing = sum(doc % 5 > 0 for doc in range(16))
    assert row["agreement"] == pytest.approx(100 * (1 - differing / sum(tokens)))
    assert row["selection_us"] == 40.0


def test_cells_without_it_have_none(compared: Path) -> None:
    rows = results(load(compared))
    assert rows.loc[rows["policy"] == "vanilla", "kl"].isna().all()
    means = summary(load(compared), rows).set_index("series")
    assert means.loc["lynx(alpha=3, beta=2)", "kl"] == pytest.approx(5.0, rel=0.2)  # lanes 1..4 times 2 millinats
    assert means["kl"].notna().sum() == 5


def test_the_table_sorts_by_active_experts(compared: Path) -> None:
    out = StringIO()
    print_table(compared, console=Console(width=100, file=out))
    text = out.getvalue()
    part = text[text.index("distance from vanilla") :]
    order = [part.index(label) for label in ("keep_experts=4", "alpha=0.7", "alpha=3")]
    assert order == sorted(order)
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_figure_and_its_numbers(compared: Path, tmp_path: Path) -> None:
    written = write_figures(compared, out=tmp_path / "figures", only="matched_active")
    assert [path.name for path in written] == [f"matched_active.{end}" for end in ("pdf", "png", "csv")]
    numbers = pd.read_csv(written[2])
    assert len(numbers) == 5 and numbers["kl"].is_monotonic_increasing is False
    again = write_figures(compared, out=tmp_path / "again", only="matched_active")
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(written, again, strict=True)] == [True] * 3


def test_without_any_comparison_it_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_cell(tmp_path, repeats=0)
    assert write_figures(tmp_path, out=tmp_path / "figures", only="matched_active") == []
    assert "fidelity=true" in caplog.text


def test_settings_of_one_policy_share_a_line_unless_something_else_differs() -> None:
    def line(policy: str, **params: object) -> str:
        return _line(policy, json.dumps(params))

    assert line("coverage", match_active=0.5, power=4.0, utility="mass") == "coverage"
    assert line("coverage", match_active=0.4, power=1.0, utility="mass") == "coverage(power=1)"
    assert line("xshare", match_active=0.4, warm_up=0) == "xshare(warm_up=0)"
    assert line("lynx", match_active=0.4, beta=2) == "lynx"
    assert line("top_k", k=1, weights="renormalize") == "top_k"
    assert line("top_k", k=1, weights="original") == "top_k(weights=original)"
    assert line("oea", k0=1, p=1.0) == "oea" and line("lynx", alpha=0.7, beta=1) == "lynx"
