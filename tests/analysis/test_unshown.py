"""Cells that differ only in what no column shows are no longer one point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.labels import settings_of
from analysis.load import load
from analysis.study import study
from tests.analysis.fake_study import POLICIES, write_cell

LYNX = next(policy for policy in POLICIES if policy.name != "vanilla")
VANILLA = next(policy for policy in POLICIES if policy.name == "vanilla")


def cells(root: Path, *configs: dict[str, Any], task: str = "mini_gsm8k") -> None:
    """A pair for each config."""
    for at, config in enumerate(configs):
        for policy in (VANILLA, LYNX):
            folder = write_cell(root, policy=policy, task=task, asked=f"{at}")
            named = {"policy": {"name": policy.name}} | config
            (folder / "config.yaml").write_text(yaml.safe_dump(named))


@pytest.mark.parametrize(
    ("configs", "settings"),
    [
        (
            [{"task": {"num_fewshot": None}}, {"task": {"num_fewshot": 5}}],
            {"task.num_fewshot default", "task.num_fewshot 5"},
        ),
        ([{"truncate": "error"}, {"truncate": "left"}], {"truncate error", "truncate left"}),
        ([{"threads": 1}, {"threads": 2}], {"threads 1", "threads 2"}),
        (
            [{"model": {"experts_implementation": "eager"}}, {"model": {"experts_implementation": "grouped_mm"}}],
            {"model.experts_implementation eager", "model.experts_implementation grouped_mm"},
        ),
    ],
)
def test_each_is_a_setting(tmp_path: Path, configs: list[dict[str, Any]], settings: set[str]) -> None:
    cells(tmp_path, *configs)
    found = settings_of(load(tmp_path).cells)
    assert set(found.values()) == settings and len(found) == 4
    rows = study(tmp_path).rows
    assert len(rows) == 4 and set(rows["setting"]) == settings
    assert rows[rows["policy"] != "vanilla"]["paired"].all()


def test_only_tasks_that_need_it(tmp_path: Path) -> None:
    cells(tmp_path, {"task": {"num_fewshot": 0}}, {"task": {"num_fewshot": 5}})
    cells(tmp_path, {"task": {"num_fewshot": 3}}, task="mini_wmt16")
    assert sorted(set(settings_of(load(tmp_path).cells).values())) == ["", "task.num_fewshot 0", "task.num_fewshot 5"]


@pytest.mark.parametrize("config", [{"measure": {"latency": True, "windows": 9}}, {"tokens": True}, {"fidelity": True}])
def test_what_is_recorded_beside_the_answers_makes_no_point(tmp_path: Path, config: dict[str, Any]) -> None:
    cells(tmp_path, {}, config)
    assert set(settings_of(load(tmp_path).cells).values()) == {""}


def test_a_config_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    cells(tmp_path, {"threads": 1})
    write_cell(tmp_path, policy=LYNX, asked="no config")
    assert set(settings_of(load(tmp_path).cells).values()) <= {"", "threads 1", "threads default"}
