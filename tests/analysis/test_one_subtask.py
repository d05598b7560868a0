"""A study of a single subtask: its mean is that subtask's row, with the same verdicts and the same intervals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis import verdicts
from analysis.study import study
from tests.analysis.fake_study import POLICIES

SAME = ("p_difference", "p_holm", "verdict", "documents_needed", "difference", "difference_low", "difference_high")
TIMES = tuple(f"{name}{end}" for name in ("speedup", "step_ms") for end in ("", "_low", "_high"))


@pytest.fixture
def alone(tmp_path: Path, cell: Callable[..., Path]) -> Path:
    for policy in POLICIES[:6]:
        cell(policy=policy, documents=64)
    return tmp_path


def test_its_mean_has_its_numbers(alone: Path) -> None:
    found = study(alone)
    rows, means = (frame.set_index("series").sort_index() for frame in (found.rows, found.summary))
    assert (rows["verdict"] != verdicts.NONE).sum() >= 4
    for column in (*SAME, *TIMES):
        pd.testing.assert_series_equal(rows[column], means[column], check_exact=False, rtol=1e-9, check_dtype=False)


def test_a_mean_over_several_counts_beside_their_rows(alone: Path, cell: Callable[..., Path]) -> None:
    once = study(alone).rows.set_index("series")["p_holm"]
    for policy in POLICIES[:6]:
        cell(policy=policy, documents=64, task="mini_humaneval")
    rows = study(alone).rows
    again = rows[rows["subtask"] == "mini_gsm8k"].set_index("series")["p_holm"]
    assert (again[once.notna() & (once < 1)] > once[once.notna() & (once < 1)]).all()


@pytest.mark.parametrize("verb", ["table", "recommend", "status"])
def test_a_reader_may_leave(alone: Path, verb: str) -> None:
    program = f"from lynx_exp.results.main import main; main(['{verb}', '{alone}'])"
    reader, writer = os.pipe()
    os.close(reader)
    left = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert left.returncode == 0 and left.stderr == b""


def test_a_setting_is_named_as_it_is_typed(tmp_path: Path, cell: Callable[..., Path]) -> None:
    for limit in (None, 16):
        for policy in POLICIES[:2]:
            cell(policy=policy, limit=limit)
    assert set(study(tmp_path).rows["setting"]) == {"limit null", "limit 16"}
