"""Cells on disk -> frames."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_study import POLICIES, strip_hardware

from analysis import describe, load
from analysis.compare import results
from analysis.macro import summary
from lynx_exp.store.cell_columns import FRAME_ROWS, FRAMES, frame_columns
from lynx_exp.store.done import seal
from lynx_exp.store.reading import read_value

Write = Callable[..., Path]
ROOT = Path(__file__).parents[2]


def test_frames_have_the_documented_columns(study: Path) -> None:
    records = load(study)
    for table in FRAMES:
        assert list(getattr(records, table).columns) == frame_columns(table)
    assert len(records.cells) == 5 * 4 * 2
    assert records.cells["cell_id"].is_unique
    assert set(records.samples["cell_id"]) == set(records.cells["cell_id"])
    assert len(records.metrics) == 5 * 5 * 2
    assert records.unfinished == ()


def test_records_unpack_into_the_three_that_notebooks_need(study: Path) -> None:
    cells, samples, steps = records = load(study)
    assert cells is records.cells and samples is records.samples and steps is records.steps


def test_the_documentation_is_up_to_date() -> None:
    written = (ROOT / "docs" / "records.md").read_text()
    assert written == describe.page(), "run `python -m analysis.describe > docs/records.md`"
    assert "(docs/records.md)" in (ROOT / "README.md").read_text()
    assert list(FRAME_ROWS) == list(FRAMES)
    for table, columns in FRAMES.items():
        section = written.split(f"\n## {table}\n")[1].split("\n## ")[0]
        rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
        assert [row[0].strip("| `") for row in rows] == [column.name for column in columns]
        assert all(unit and meaning.strip(" |") for _, unit, meaning in rows), "each has a unit and a meaning"


def test_the_documented_example_runs(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "demo").symlink_to(study / "demo")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", describe.page(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    first = names["samples"][names["samples"]["cell_id"] == names["cells"]["cell_id"].iloc[0]]
    cell = names["cells"].iloc[0]
    means = names["accuracy"][cell["policy_label"], cell["batch_size"]]
    for subtask, part in first.groupby("subtask", observed=True):
        assert means[subtask] == pytest.approx(part["score"].mean(), nan_ok=True)
    assert names["active"].loc["vanilla"] > names["active"].loc["lynx_v1_latency(keep_experts=4)"]


def test_cells_keep_policy_and_activity(cell: Write, tmp_path: Path) -> None:
    folder = cell(batch_size=16)
    row = load(tmp_path).cells.iloc[0]
    assert row["policy_label"] == "vanilla"
    assert json.loads(row["policy_params"]) == {}
    assert row["num_experts"] == 16
    assert row["active_experts"] == json.loads((folder / "metrics.json").read_text())["active_experts"]
    assert row["timed_active_experts"] == json.loads((folder / "timing.json").read_text())["vanilla_active_experts"]
    assert Path(row["path"]) == folder


def test_cells_keep_what_the_hardware_gave(cell: Write, tmp_path: Path) -> None:
    """Of the policy, with vanilla's energy on the same steps; what is not on record is missing, and never 0."""
    timing = json.loads((cell(policy=POLICIES[5]) / "timing.json").read_text())
    strip_hardware(cell(batch_size=16))
    own, older = (load(tmp_path).cells.set_index("batch_size").loc[batch] for batch in (4, 16))
    for name in ("step_gb", "gb_s", "s_mbu", "j_per_token"):
        assert own[name] == timing[f"policy_{name}"] != timing[f"vanilla_{name}"] and pd.isna(older[name])
    assert own["vanilla_j_per_token"] == timing["vanilla_j_per_token"] and own["copy_gb_s"] == 20.0
    assert pd.isna(older["copy_gb_s"])
    (row,) = summary(records := load(tmp_path), results(records).query("batch_size == 16")).to_dict("records")
    assert math.isnan(row["s_mbu"]) and math.isnan(row["j_per_token"])


def test_unfinished_cells_are_named(cell: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cell()
    failed = cell(state="failed", batch_size=16)
    interrupted = cell(state="interrupted", batch_size=2)
    with caplog.at_level(logging.WARNING):
        records = load(tmp_path)
    assert len(records.cells) == 1
    assert records.unfinished == (f"{failed.name} (failed: MemoryError)", f"{interrupted.name} (interrupted)")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("2 unfinished cells left out: ")
    assert failed.name in caplog.messages[0]


def test_a_cell_behind_a_link_is_read(cell: Write, tmp_path: Path) -> None:
    """It may lie on a larger disk."""
    for policy in POLICIES[:2]:
        folder = cell(policy=policy, documents=8)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere, target_is_directory=True)
    (folder.parent / "loop").symlink_to(folder.parent, target_is_directory=True)
    assert set(load(tmp_path).cells["policy"]) == {policy.name for policy in POLICIES[:2]}


def test_a_stray_file_hides_no_cells(cell: Write, tmp_path: Path) -> None:
    folder = cell(policy=POLICIES[0], documents=8)
    os.mkfifo(folder.parent / "cell.json")
    assert len(load(tmp_path).cells) == 1


def test_a_score_without_rows_is_set_aside(cell: Write, tmp_path: Path) -> None:
    for policy in POLICIES[:2]:
        folder = cell(policy=policy, documents=8)
    rows = pq.read_table(folder / "samples.parquet")
    pq.write_table(rows.slice(0, 0), folder / "samples.parquet")
    done = read_value(folder / "DONE")
    (folder / "DONE").write_text(json.dumps(seal(folder, done["files"])))
    records = load(tmp_path)
    assert list(records.cells["policy"]) == [POLICIES[0].name]
    assert "samples.parquet: holds no row of mini_gsm8k, which metrics.json scores" in records.set_aside[0]


def test_a_cell_in_two_studies_counts_once(cell: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cell(study="demo")
    cell(study="copy")
    with caplog.at_level(logging.WARNING):
        assert len(load(tmp_path).samples) == 16
    assert caplog.messages == ["1 cell found in more than one folder, counted once"]


def test_no_timing_leaves_an_empty_frame(cell: Write, tmp_path: Path) -> None:
    cell(repeats=0)
    assert load(tmp_path).timing.empty


def test_nothing_finished_is_one_clear_line(cell: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: not a folder; give a study"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no finished cell$"):
        load(tmp_path)
    folder = cell(state="running")
    with pytest.raises(ValueError, match=rf"no finished cell; unfinished: {folder.name} \(running\)"):
        load(tmp_path)


def test_import_brings_in_nothing_heavy() -> None:
    heavy = ("matplotlib", "scipy", "sacrebleu", "torch")
    code = f"import sys, analysis, analysis.figures; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
