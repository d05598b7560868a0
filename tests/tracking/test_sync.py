"""`lynx-results sync`: from cells on disk to a server, again and again, and when there is none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from lynx_exp.results import main
from lynx_exp.store.files import read_json, sha256_of, write_json
from lynx_exp.tracking import run_content as content
from lynx_exp.tracking import wandb_runs as runs
from tests.tracking.conftest import Write
from tests.tracking.fake_server import FakeServer, serving
from tests.tracking.wandb_file import read_run


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with serving() as one:
        monkeypatch.setenv("WANDB_BASE_URL", one.address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()  # what an earlier test set up was for another server
        yield one
        wandb.teardown()


@pytest.fixture(autouse=True)
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up cells are too small for analysis, which has tests of its own."""
    monkeypatch.setattr(
        "lynx_exp.tracking.study_content.tables_of", lambda study: {"results": (["policy"], [["lynx"]])}
    )


def sync(*arguments: Any) -> int:
    try:
        main.main(["sync", *map(str, arguments)])
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def test_runs_are_rebuilt_from_disk(server: FakeServer, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    records = [write(name, policy) for name, policy in (("a", "vanilla"), ("b", "lynx"))]
    study = records[0].path.parent
    assert sync(study, "--entity", "team") == 0
    out, err = capsys.readouterr()
    ids = [content.run_id_of(record) for record in records]
    study_id = content.run_id("study", "demo")
    assert out.splitlines() == [
        f"1/2 a: run {ids[0]}", f"2/2 b: run {ids[1]}", f"demo (tables and figures): run {study_id}",
    ] and err == ""  # fmt: skip
    assert set(server.runs) == {*ids, study_id}
    for record, run_id in zip(records, ids, strict=True):
        run, about = server.runs[run_id], content.init_arguments(record)
        assert run.about["project"] == "moe" and run.about["entity"] == "team" and run.about["groupName"] == "demo"
        assert run.about["displayName"] == about["name"] and run.about["jobType"] == "eval"
        assert run.about["tags"] == ["mine", *about["tags"]]
        assert {**json.loads(run.about["config"])}["batch_size"]["value"] == 4
        assert {name: run.summary[name] for name in content.summary(record)} == content.summary(record)
        curves = [line for line in run.history.values() if content.STEP in line]
        for line, expected in zip(curves, content.curves(record), strict=True):
            assert line["steps/one/active_experts"] == expected["steps/one/active_experts"]
            assert line["steps/one/histogram"]["values"] == expected["steps/one/histogram"][0]
        assert ("records", f"cell-{run_id}") in server.artifacts


def test_what_is_there_is_passed_over_and_what_changed_is_updated(
    server: FakeServer, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    record = write()
    study, run_id = record.path.parent, content.run_id_of(record)
    assert sync(study) == 0
    steps = len([line for line in server.runs[run_id].history.values() if content.STEP in line])
    capsys.readouterr()
    assert sync(study) == 0
    assert capsys.readouterr().out.startswith("1/1 cell: is there\n")
    assert server.runs[run_id].complete == 1
    metrics = read_json(record.path / "metrics.json")
    metrics["metrics"][0]["value"] = 0.75  # as after `lynx-results rescore`
    write_json(record.path / "metrics.json", metrics)
    done = read_json(record.path / "DONE")
    done["files"]["metrics.json"] = sha256_of(record.path / "metrics.json")
    write_json(record.path / "DONE", done)
    assert sync(study) == 0
    run = server.runs[run_id]
    assert run.complete == 2 and run.summary["score/one"] == 0.75
    assert len([line for line in run.history.values() if content.STEP in line]) == steps, "curves are not doubled"
    assert sync(study, "--again") == 0 and run.complete == 3
    capsys.readouterr()
    assert sync(study, "--project", "other") == 0
    assert "run" in capsys.readouterr().out.splitlines()[0], "another place"


def test_an_outage_is_said_and_made_up_for(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [write("a"), write("b")]
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(runs, "INIT_TIMEOUT_S", 1.0)
    with serving("mute") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        wandb.teardown()
        assert sync(records[0].path.parent) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        assert err.startswith("lynx-results: error: wandb: ") and err.endswith(
            "; 0 cells logged, the same command logs the others\n"
        )
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        wandb.teardown()
        assert sync(records[0].path.parent) == 0
        assert {content.run_id_of(record) for record in records} < set(server.runs)
        wandb.teardown()


def test_offline_needs_no_server(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = write()
    assert sync(tmp_path, "--offline") == 0, "a folder above"
    assert sync(tmp_path, "--offline") == 0, "wandb's own files do not count as cells"
    wandb.teardown()
    found = [read_run(file) for file in (record.path.parent / "wandb").glob("offline-run-*/*.wandb")]
    assert {run.id for run in found} == {content.run_id_of(record), content.run_id("study", "demo")}
    assert len(found) == 2


def test_a_cell_that_cannot_be_read_stops_no_other(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write("a"), write("b")
    (first.path / "steps.parquet").write_bytes(b"garbage")
    assert sync(first.path.parent, "--offline") == 1
    out, err = capsys.readouterr()
    assert f"1/1 b: run {content.run_id_of(second)}" in out
    assert err.startswith("lynx-results: set aside: ") and "steps.parquet: is not the file" in err
    assert err.count("\n") == 1


def test_bad_input(tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert sync(tmp_path / "nowhere") == 2 and sync(tmp_path) == 2
    err = capsys.readouterr().err
    assert "not a folder" in err and "holds no finished cell" in err
    shutil.rmtree(tmp_path / "wandb_home", ignore_errors=True)
    record = write()
    assert sync(record.path.parent) == 1
    assert re.search(r"error: wandb: UsageError: No API key configured", capsys.readouterr().err)
