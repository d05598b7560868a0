"""Finished cells scored anew: nothing changes where nothing has, what changes is said, and a kill leaves no trap."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lynx_exp.config import TaskConfig
from lynx_exp.engine import Engine
from lynx_exp.run.replay.finished_cells import done_cells, read_config
from lynx_exp.run.replay.rescore_cells import WRITTEN, rescore
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.files import read_json, sha256_of, write_json, write_parquet
from lynx_exp.store.hold import Hold
from lynx_exp.store.read import CellRecord, is_done, read_cell
from lynx_exp.store.tables import SAMPLES
from lynx_exp.tasks.load_task import load_task
from tests.run.fakes import FakeTask
from tests.run.real_cells import bundled

TASKS = (
    TaskConfig(name="both", subtasks=["mini_truthfulqa_gen", "mini_truthfulqa_mc1"]),
    TaskConfig(name="mixed", subtasks=["mini_gsm8k", "mini_wmt16"], weights=[2.0, 1.0]),
    TaskConfig(name="code", subtasks=["mini_humaneval"]),
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real cells: two subtasks, one of choices; a mix with a corpus metric; generated code."""
    root = tmp_path_factory.mktemp("ran")
    assert run_cells([bundled(root, task=task, batch_size=3, limit=4) for task in TASKS]).failed == 0
    return root


@pytest.fixture
def cells(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Copies of them, by task; no model loads any more."""

    def load(*_args: Any, **_more: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Engine, "from_pretrained", load)
    shutil.copytree(ran, tmp_path / "cells")
    return {record.info["task"]: record.path for record in done_cells(tmp_path / "cells")}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stale(folder: Path) -> list[str]:
    """Files that are not those that DONE names."""
    return [name for name, digest in read_json(folder / "DONE")["files"].items() if sha256_of(folder / name) != digest]


def spoil(folder: Path) -> dict[str, Any]:
    """As if an older version had scored otherwise; the metrics as they were."""
    metrics = read_json(folder / "metrics.json")
    rows = [row | {"value": 0.125} if row["headline"] else row for row in metrics["metrics"]]
    write_json(folder / "metrics.json", metrics | {"metrics": rows})
    samples = read_cell(folder, allow_changed=WRITTEN).samples().to_pylist()
    samples[0]["filtered"] = "something else"
    write_parquet(folder / "samples.parquet", pa.Table.from_pylist(samples, schema=SAMPLES))
    return metrics


@pytest.mark.parametrize("name", ["both", "mixed", "code"])
def test_the_same_scores_leave_every_byte(name: str, cells: dict[str, Path]) -> None:
    before = content(cells[name])
    found = rescore(read_cell(cells[name]))
    assert str(found) == "unchanged" and not found.changes
    assert content(cells[name]) == before


@pytest.mark.parametrize("name", ["both", "mixed"])
def test_other_scores_are_written_and_said(name: str, cells: dict[str, Path], ran: Path) -> None:
    folder = cells[name]
    good = content(folder)
    metrics = spoil(folder)
    found = rescore(read_cell(folder, allow_changed=WRITTEN))
    assert found.samples == 1 and all(change.before == 0.125 for change in found.changes)
    assert len(found.changes) == sum(row["headline"] and row["value"] != 0.125 for row in metrics["metrics"]) > 0
    assert "0.125 -> " in str(found)
    after = content(folder)
    assert {file for file in after if after[file] != good[file]} == {"status.json", "DONE"}, "the rest is as it was"
    status = read_json(folder / "status.json")
    assert status["state"] == "done" and status["notes"][-1].startswith("rescored 2")
    spoil(folder)
    rescore(read_cell(folder, allow_changed=WRITTEN))
    assert len(read_json(folder / "status.json")["notes"]) == 1, "one note, however often"
    task = next(task for task in TASKS if task.name == name)
    again = run_cells([bundled(folder.parents[1], task=task, batch_size=3, limit=4)])
    assert [outcome.state for outcome in again.outcomes] == ["skipped"], "still the same cell, and done"


def test_code_runs_again_in_the_sandbox_that_is_asked_for(cells: dict[str, Path]) -> None:
    before = read_cell(cells["code"])
    found = rescore(before, sandbox="unsafe", confirm_unsafe_code=True)
    assert not found.changes and found.samples == 4 and "a verdict or its sandbox changed" in str(found)
    after = read_cell(cells["code"])
    assert after.metrics == before.metrics
    verdicts = [samples.column("verdict").to_pylist() for samples in (before.samples(), after.samples())]
    assert verdicts[0] == verdicts[1] and set(after.samples().column("sandbox").to_pylist()) != {None}
    with pytest.raises(ValueError, match="sandbox=unsafe: runs what the model wrote with your rights"):
        rescore(after, sandbox="unsafe")


@pytest.mark.parametrize("killed_at", range(4))
def test_a_kill_is_put_right_by_the_next_run(
    killed_at: int, cells: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cells["both"]
    good = content(folder)
    spoil(folder)
    writes = 0

    def killed(write: Any) -> Any:
        def maybe(hold: Hold, path: Path, *content: Any) -> None:
            nonlocal writes
            if writes == killed_at:
                raise KeyboardInterrupt
            writes += 1
            write(hold, path, *content)

        return maybe

    with monkeypatch.context() as patch:
        patch.setattr(Hold, "write_json", killed(Hold.write_json))
        patch.setattr(Hold, "write_parquet", killed(Hold.write_parquet))
        with pytest.raises(KeyboardInterrupt):
            rescore(read_cell(folder, allow_changed=WRITTEN))
    assert is_done(folder), "the launcher would run it again"
    rescore(read_cell(folder, allow_changed=WRITTEN))
    assert stale(folder) == []
    assert {name for name, data in content(folder).items() if data != good[name]} <= {"status.json", "DONE"}
    assert str(rescore(read_cell(folder, allow_changed=WRITTEN))) == "unchanged"


def changed_settings(name: str, *, limit: int | None, settings: Any) -> Any:
    return load_task(name, limit=limit, settings=replace(settings, max_gen_toks=7))


def fewer(name: str, *, limit: int | None, settings: Any) -> Any:
    return load_task(name, limit=3, settings=settings)


class Reworded:
    """A task with another prompt."""

    def __init__(self, task: Any) -> None:
        self.name, self.kind, self.data_digest = task.name, task.kind, "0" * 64
        self.requests = (replace(task.requests[0], prompt="Other"), *task.requests[1:])

    @property
    def members(self) -> tuple[Reworded, ...]:
        return (self,)


def reworded(name: str, *, limit: int | None, settings: Any) -> Any:
    return Reworded(load_task(name, limit=limit, settings=settings))


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (changed_settings, "the prompts are the same"),
        (fewer, "3 requests now, and had 4"),
        (reworded, "1 of 4 prompts"),
    ],
)
def test_a_task_that_is_another_is_refused(load: Any, why: str, cells: dict[str, Path]) -> None:
    before = content(cells["both"])
    with pytest.raises(ValueError, match=f"^mini_truthfulqa_gen: no longer what the cell answered.*{why}"):
        rescore(read_cell(cells["both"]), load=load)
    assert content(cells["both"]) == before


def test_damaged_cells_are_refused(cells: dict[str, Path]) -> None:
    folder = cells["both"]
    rows = read_cell(folder, allow_changed=WRITTEN).responses()
    write_parquet(folder / "responses.parquet", rows.slice(1))
    with pytest.raises(ValueError, match="responses.parquet: is not the file that DONE names"):
        rescore(read_cell(folder, allow_changed=WRITTEN))
    (folder / "config.yaml").write_text("model: 3\n")
    with pytest.raises(ValueError, match="config.yaml: not one that this version reads"):
        rescore(read_cell(folder, allow_changed=(*WRITTEN, "config.yaml", "responses.parquet")))


def test_configs_come_back_as_they_were(cells: dict[str, Path], ran: Path) -> None:
    wanted = bundled(ran, task=TASKS[1], batch_size=3, limit=4, batching="continuous")  # what `auto` comes to
    assert replace(read_config(cells["mixed"] / "config.yaml"), results=str(ran)) == wanted


def test_what_has_no_finished_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished cell"):
        done_cells(tmp_path)


def test_scoring_that_has_changed(bench: Any, config: Any) -> None:
    """With tasks whose metric means something else now."""
    assert bench.run([config()]).failed == 0
    (record,) = done_cells(Path(config().results))

    class Odd(FakeTask):
        def score(self, responses: list[Any], *, sandbox: Any = None) -> Any:
            scores = super().score([f"{text} {int(text.split()[-1]) + 1}" for text in responses])
            return replace(scores, metrics=[replace(scores.metrics[0], value=float("nan"))])

    found = rescore(record, load=lambda name, limit, settings: Odd(name, "generate", 5))
    (change,) = found.changes
    assert change.after is None and str(change).startswith("gen acc,none: ") and str(change).endswith("-> none")
    assert found.samples == 5
    after = CellRecord(**vars(read_cell(record.path)))
    assert after.metrics["metrics"][0]["value"] is None
    assert {**after.metrics, "metrics": 0} == {**record.metrics, "metrics": 0}
    assert json.loads((record.path / "metrics.json").read_text()) == after.metrics
