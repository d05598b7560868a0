"""Times that are not final are marked, and neither recommended nor on a frontier."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analysis import print_table, write_figures
from analysis.page.chart_points import chart
from analysis.recommendation import print_recommendations, recommendations
from analysis.study import study
from tests.analysis.fake_study import POLICIES

Write = Callable[..., Path]


DOUBTS = {
    "missed": {"precision_reached": False},
    "busy": {"other_threads": 3.0},
    "neighbours drift together": {"precision": 1e-4},  # the interval that is shown is wide, whatever timing stopped at
}


@pytest.mark.parametrize("doubt", DOUBTS.values(), ids=DOUBTS)
def test_marked_and_no_candidate(cell: Write, tmp_path: Path, doubt: dict[str, object]) -> None:
    for policy in (POLICIES[0], POLICIES[7]):
        folder = cell(policy=policy, documents=4096)
    timing = json.loads((folder / "timing.json").read_text())
    (folder / "timing.json").write_text(json.dumps(timing | doubt))
    found = study(tmp_path)
    row = found.rows[found.rows["policy"] != "vanilla"].iloc[0]
    assert not row["timing_final"]
    (why,) = recommendations(found)["why"]
    assert "its time is not final" in why
    asked = io.StringIO()
    print_recommendations(found, Console(file=asked, width=100))
    assert re.search(r"1\.\d\d \[\d\.\d\d,\d\.\d\d\]~ ", asked.getvalue())
    points = {point["policy"]: point["final"] for point in chart(found)["points"]}  # type: ignore[attr-defined]
    assert points == {"vanilla": True, POLICIES[7].name: False}
    written = {path.name: path for path in write_figures(tmp_path)}
    assert r"$^{\sim}$" in written["table2.tex"].read_text() and "% ~ behind" in written["table2.tex"].read_text()
    assert pd.read_csv(written["pareto_speedup_families.csv"]).empty, "no area from a time that is not final"
    times = pd.read_csv(written["step_vs_active.csv"])
    assert dict(zip(times["policy"], times["timing_final"], strict=True)) == points
    stream = io.StringIO()
    print_table(tmp_path, console=Console(file=stream, width=100))
    assert "]~" in stream.getvalue()


def test_on_an_idle_machine_it_is_a_candidate(cell: Write, tmp_path: Path) -> None:
    for policy in (POLICIES[0], POLICIES[7]):
        cell(policy=policy, documents=4096)
    assert list(recommendations(study(tmp_path))["why"]) == ["recommended"]
