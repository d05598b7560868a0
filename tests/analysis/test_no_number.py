"""A headline that is no finite number is shown as missing, and named; the rest goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from analysis import print_table, write_figures
from analysis.page.document import page
from analysis.recommendation import print_recommendations
from analysis.study import study
from tests.analysis.fake_study import POLICIES

Write = Callable[..., Path]


@pytest.mark.parametrize("everywhere", [False, True], ids=["one", "all"])
def test_every_reader_goes_on(cell: Write, tmp_path: Path, everywhere: bool) -> None:
    folders = [cell(policy=policy, task=task) for policy in POLICIES[:3] for task in ("mini_gsm8k", "mini_wmt16")]
    for folder in folders if everywhere else folders[-2:-1]:
        metrics = json.loads((folder / "metrics.json").read_text())
        for metric in metrics["metrics"]:
            metric["value"] = None
        (folder / "metrics.json").write_text(json.dumps(metrics))
    found = study(tmp_path)
    assert any("no finite number" in line for line in found.warnings)
    stream = io.StringIO()
    console = Console(file=stream, width=100)
    print_table(tmp_path, console=console, by="all")
    print_recommendations(found, console)
    assert "no finite number" in stream.getvalue()
    assert everywhere or "mini_wmt16" in stream.getvalue()
    write_figures(tmp_path, tmp_path / "drawn", only="pareto")
    assert "no finite number" in page(tmp_path, track=lambda names: ())
