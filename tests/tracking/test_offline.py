"""Real offline runs of wandb, read back from its own files and compared with the records."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from PIL import Image

from lynx_exp.config import MeasureConfig, TaskConfig, TrackerConfig
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.read import read_cells
from lynx_exp.tracking import NoTracker, open_tracker
from lynx_exp.tracking import run_content as content
from lynx_exp.tracking.wandb_runs import Place, _forget_older, log_cell, log_study
from tests.run.real_cells import bundled
from tests.tracking.conftest import Write
from tests.tracking.wandb_file import OfflineRun, read_run

OFFLINE = Place(project="moe", entity=None, mode="offline", tags=("mine",))


def runs_in(study: Path) -> dict[str, OfflineRun]:
    wandb.teardown()  # a run's last records reach the disk a moment after it is finished
    found = [read_run(file) for file in sorted((study / "wandb").glob("offline-run-*/*.wandb"))]
    assert len({run.id for run in found}) == len(found), "one copy of each run"
    return {run.id: run for run in found}


def test_a_run_holds_what_the_record_does(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    record = write()
    run_id = log_cell(record, OFFLINE)
    (run,) = runs_in(record.path.parent).values()
    about = content.init_arguments(record)
    assert (run.id, run.name, run.group, run.job_type) == (run_id, about["name"], "demo", "eval")
    assert run.project == "moe" and run.tags == ["mine", "t", "lynx", "batch_4"] and run.exit_code == 0
    assert {name: value for name, value in run.config.items() if name != "_wandb"} == about["config"]
    shown = {name: value for name, value in run.summary.items() if name in content.summary(record)}
    assert shown == content.summary(record)
    curves = [row for row in run.history if content.STEP in row]
    for row, expected in zip(curves, content.curves(record), strict=True):
        for name, value in expected.items():
            if isinstance(value, tuple):
                assert row[name] == {"_type": "histogram", "values": value[0], "bins": value[1]}
            else:
                assert row[name] == value
    columns, rows = run.table("samples")
    assert columns == list(content.SAMPLE_COLUMNS) and rows == content.samples(record)
    assert run.metrics["steps/*"] == content.STEP
    kind, files = run.artifacts[f"cell-{run_id}"]
    assert kind == "records" and {"config.yaml", "samples.parquet", "steps.parquet", "metrics.json"} <= set(files)
    assert run.host == "" and "environment" not in run.kinds, "neither who ran it nor where"
    assert capsys.readouterr() == ("", "")


def test_a_repeat_takes_the_place_of_the_run_before(write: Write) -> None:
    record = write()
    assert log_cell(record, OFFLINE) == log_cell(record, OFFLINE)
    assert list(runs_in(record.path.parent)) == [content.run_id_of(record)]


@pytest.mark.parametrize("kept", ["run-20260102_030405-id", "run-20260102_030405-id-1", "run-20260102_030406-id"])
def test_of_two_processes_that_log_one_cell_the_copy_of_the_last_stays(kept: str, tmp_path: Path) -> None:
    """Each removes what was begun before its own, and neither what the other is still writing."""
    names = ["run-20260102_030405-id", "run-20260102_030405-id-1", "run-20260102_030406-id"]
    for name in (*names, "run-20260101_000000-another"):
        (tmp_path / "wandb" / f"offline-{name}" / "files").mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to(f"offline-{names[0]}")
    run = SimpleNamespace(dir=str(tmp_path / "wandb" / f"offline-{kept}" / "files"))
    _forget_older(tmp_path, "id", run)
    left = {path.name for path in (tmp_path / "wandb").glob("offline-*")}
    later = names[names.index(kept) :]
    assert left == {f"offline-{name}" for name in (*later, "run-20260101_000000-another")}


def test_a_study_shows_its_tables_and_figures(write: Write, tmp_path: Path) -> None:
    study = write().path.parent
    (study / "figures").mkdir()
    Image.new("RGB", (8, 8)).save(study / "figures" / "pareto.png")
    (study / "figures" / "pareto.pdf").write_bytes(b"%PDF-")
    figures = sorted((study / "figures").iterdir())
    tables = {"results": (["policy", "score"], [["lynx", 1.5], ["vanilla", None]])}
    run_id = log_study(study, OFFLINE, name="demo", tables=tables, figures=figures)
    run = runs_in(study)[run_id]
    assert (run.group, run.job_type) == ("demo", "analysis") and run.table("results") == tables["results"]
    assert any("figures/pareto" in row for row in run.history)
    assert run.artifacts[f"figures-{run_id}"] == ("figures", ["pareto.pdf", "pareto.png"])


@pytest.mark.slow
def test_a_sweep_is_tracked_as_it_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two real cells, logged by the process beside the run, and the study in the end."""
    task = TaskConfig(name="mini_gsm8k", subtasks=["mini_gsm8k"])
    measure = MeasureConfig(latency=True, windows=2, max_windows=2, new_tokens=2)
    tracker = TrackerConfig(name="wandb", project="moe")
    cells = [
        bundled(tmp_path, task=task, batch_size=2, limit=3, measure=measure, policy=policy, then=["table"])
        for policy in ({"name": "vanilla"}, {"name": "top_k", "k": 1})
    ]
    for cell in cells:
        cell.tracker = tracker
    assert run_cells(cells).failed == 0
    assert "warning" not in capfd.readouterr().err
    study = tmp_path / "default"
    runs, records = runs_in(study), read_cells(study)
    assert len(records) == 2 and len(runs) == 3
    for record in records:
        run = runs[content.run_id_of(record)]
        assert run.exit_code == 0 and run.group == "default"
        expected = json.loads(json.dumps(content.summary(record)))
        assert {name: run.summary[name] for name in expected} == expected and expected["step_ms"] > 0
        assert expected["score/mini_gsm8k"] == record.metrics["metrics"][0]["value"]
        assert len([row for row in run.history if content.STEP in row]) == len(list(content.curves(record)))
        assert run.table("samples")[1] == content.samples(record)
    columns, rows = runs[content.run_id("study", "default")].table("results")
    assert {row[columns.index("policy")] for row in rows} == {"vanilla", "top_k"}


def test_none_is_the_default() -> None:
    assert isinstance(open_tracker(TrackerConfig(), Path("nowhere")), NoTracker)
