"""The tracker on a real offline wandb, and on one that fails at every call."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

from lynx_exp.config import TrackerConfig
from lynx_exp.store.files import write_json, write_parquet
from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.read import CellRecord, read_cell
from lynx_exp.store.tables import SAMPLES, STEPS, TIMING
from lynx_exp.tracking import NoTracker, open_tracker


@pytest.fixture
def record(tmp_path: Path) -> CellRecord:
    folder = tmp_path / "demo" / "cell"
    folder.mkdir(parents=True)
    info = {"schema": SCHEMA, "cell_id": "c" * 64, "task": "t", "batch_size": 4}
    info |= {"policy": "lynx", "policy_label": "lynx(alpha=3)"}
    write_json(folder / "cell.json", info)
    write_json(folder / "status.json", {"attempt": 2, "seconds": 1.5})
    metric = {"subtask": "t", "metric": "acc", "filter": "none", "value": 0.5, "headline": True}
    write_json(folder / "metrics.json", {"metrics": [metric], "active_experts": 3.5, "by_subtask": {}})
    step = {"subtask": "t", "lane": 0, "live_rows": 4}
    steps = [step | {"step": s, "layer": layer, "active_experts": 2 + s + layer} for s in (0, 1) for layer in (0, 1)]
    write_parquet(folder / "steps.parquet", pa.Table.from_pylist(steps, schema=STEPS))
    sample = {"subtask": "t", "lane": 0, "score": 1.0, "scores": "{}", "target": "4", "filtered": "4"}
    samples = [sample | {"doc_id": d} for d in range(70)]
    write_parquet(folder / "samples.parquet", pa.Table.from_pylist(samples, schema=SAMPLES))
    timing = [{"name": name, "repeat": 0, "step": 0, "ms": ms} for name, ms in (("vanilla", 2.0), ("policy", 1.0))]
    write_parquet(folder / "timing.parquet", pa.Table.from_pylist(timing, schema=TIMING))
    return read_cell(folder)


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[dict] = []
        self.summary: dict = {}
        self.finished = False

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


def fake_wandb(init) -> ModuleType:
    class Table:
        def __init__(self, columns):
            self.rows = []

        def add_data(self, *row):
            self.rows.append(row)

    module = ModuleType("wandb")
    module.init, module.Table = init, Table
    module.Settings, module.Image = lambda **settings: settings, lambda path: path
    return module


def test_what_a_cell_logs(record, monkeypatch, tmp_path):
    runs, started = [], []

    def init(**about):
        started.append(about)
        runs.append(FakeRun())
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(init))
    tracker = open_tracker(TrackerConfig(name="wandb", tags=["mine"]), tmp_path / "demo")
    tracker.log_cell(record, {"batch_size": 4, "results": f"{Path.home()}/results"})
    tracker.log_figures([tmp_path / "pareto.png"])
    about, run = started[0], runs[0]
    assert (
        about["id"] == "c" * 20 + "-2"
        and about["group"] == "demo"
        and about["job_type"] == "lynx"
        and about["mode"] == "offline"
    )
    assert "mine" in about["tags"] and about["config"]["cell"] == record.info
    assert str(Path.home()) not in str(about["config"]["results"])
    assert [entry["active_experts"] for entry in run.logged[:2]] == [2.5, 3.5]
    assert len(run.logged[-1]["samples"].rows) == 50
    assert run.summary["t/acc"] == 0.5 and run.summary["tpot_ms/policy"] == 1.0 and run.summary["active_experts"] == 3.5
    assert run.finished and runs[1].finished and "figures/pareto" in runs[1].logged[0]


def test_a_failing_wandb_warns_once_and_raises_nothing(record, monkeypatch, capsys, tmp_path):
    def init(**_about):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(init))
    tracker = open_tracker(TrackerConfig(name="wandb"), tmp_path)
    tracker.log_cell(record, {})
    tracker.log_cell(record, {})
    tracker.log_figures([tmp_path / "a.png"])
    tracker.close()
    err = capsys.readouterr().err
    assert err == "lynx-exp: warning: wandb: ConnectionError: no network; the run goes on\n"


def test_a_missing_wandb_warns_too(record, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    open_tracker(TrackerConfig(name="wandb"), tmp_path).log_cell(record, {})
    assert "the run goes on" in capsys.readouterr().err


def test_none_is_the_default():
    assert isinstance(open_tracker(TrackerConfig(), Path("nowhere")), NoTracker)


@pytest.mark.slow
def test_a_real_offline_run(record, capsys, monkeypatch, tmp_path):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    open_tracker(TrackerConfig(name="wandb"), tmp_path / "demo").log_cell(record, {"batch_size": 4})
    assert "warning" not in capsys.readouterr().err
    assert list((tmp_path / "demo" / "wandb").glob("offline-run-*"))
