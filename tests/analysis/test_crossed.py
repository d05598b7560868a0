"""Figures of a study that crosses tasks with batch sizes: nothing is joined, empty or denied that is not so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pytest
from fake_study import POLICIES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import write_figures
from analysis.figures import looks, style

Write = Callable[..., Path]
CROSSED = (("mini_gsm8k", 4), ("mini_gsm8k", 16), ("mini_wmt16", 8), ("mini_wmt16", 32), ("mini_humaneval", 8))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Figure, pd.DataFrame, list[str]]]:
    """Figure, numbers and notes by name, instead of files."""
    found: dict[str, tuple[Figure, pd.DataFrame, list[str]]] = {}

    def save(fig: Figure, folder: Path, name: str, numbers: pd.DataFrame, left_out: Iterable[str] = ()) -> list[Path]:
        found[name] = fig, numbers, list(left_out)
        return []

    monkeypatch.setattr(style, "save", save)
    return found


def points(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if line.get_marker() not in ("", "None") and len(line.get_xdata())]


def shown(fig: Figure) -> list[str]:
    """Titles of the panels that can be seen; each has points in it."""
    seen = [axes for axes in fig.axes if axes.axison]
    assert all(map(points, seen))
    return [axes.get_title(loc="left") for axes in seen]


def test_lines_join_no_two_tasks(cell: Write, tmp_path: Path, drawn: dict) -> None:
    for task, batch in CROSSED:
        for policy in (POLICIES[0], POLICIES[5]):
            cell(policy=policy, task=task, batch_size=batch, repeats=0)
    write_figures(tmp_path, only="active_vs_batch")
    fig, numbers, notes = drawn["active_vs_batch"]
    assert shown(fig) == ["mini_gsm8k", "mini_wmt16"]
    assert notes == ["not drawn, at fewer batch sizes: mini_humaneval"]
    assert numbers.groupby("panel")["batch_size"].agg(lambda found: sorted(set(found))).to_dict() == {
        "mini_gsm8k": [4, 16],
        "mini_wmt16": [8, 32],
    }
    for axes, batches in zip(fig.axes, ({4, 16}, {8, 32}), strict=True):
        assert len(points(axes)) == 2 and all(set(line.get_xdata()) == batches for line in points(axes))


def test_no_panel_is_empty(cell: Write, tmp_path: Path, drawn: dict) -> None:
    for task, batch in CROSSED[:3]:
        for policy in (POLICIES[0], POLICIES[5]):
            cell(policy=policy, task=task, batch_size=batch, repeats=0)
    write_figures(tmp_path, only="pareto")
    panels = shown(drawn["pareto_active_tasks_b4-8"][0])
    assert panels == ["batch size 4\nmini_gsm8k", "batch size 8\nmini_wmt16"]


def test_a_star_alone_is_no_panel_and_what_is_drawn_is_not_said_to_be_missing(
    cell: Write, tmp_path: Path, drawn: dict
) -> None:
    for batch in (4, 16):
        cell(batch_size=batch, repeats=0)
    cell(batch_size=4, policy=POLICIES[5], repeats=0)
    write_figures(tmp_path, only="pareto")
    fig, numbers, notes = drawn["pareto_active"]
    assert shown(fig) == ["batch size 4"] and set(numbers["batch_size"]) == {4}
    assert notes == ["not drawn, no policy beside it: vanilla (batch size 16)"]


def test_a_panel_without_a_point_is_ringed_nowhere() -> None:
    """As in `length_drift`, of a subtask that a setting did not run."""
    axes = Figure().subplots()
    looks.ring(axes, pd.DataFrame({"batch_size": [], "y": [], "guard": pd.Series(dtype=object)}), "batch_size", "y")
    assert points(axes) == []


def test_where_a_setting_is_not_drawn_is_said(cell: Write, tmp_path: Path, drawn: dict) -> None:
    """Vanilla was timed at one batch size of two: the note stood above its star."""
    for batch, repeats in ((4, 5), (16, 0)):
        for policy in (POLICIES[0], POLICIES[5]):
            cell(batch_size=batch, policy=policy, repeats=repeats)
    write_figures(tmp_path, only="pareto")
    notes = ["not drawn, no decode speed-up on record: all at batch size 16"]
    assert drawn["pareto_speedup"][2] == notes and shown(drawn["pareto_speedup"][0]) == ["batch size 4"]
