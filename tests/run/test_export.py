"""Cells in lm-eval's own form: its scores are the cell's, its samples the stored responses."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.config import GenerationConfig, TaskConfig
from lynx_exp.engine import Engine
from lynx_exp.results.main import main
from lynx_exp.run.replay.finished_cells import done_cells
from lynx_exp.run.replay.lm_eval_export import export_lm_eval
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.done import seal
from lynx_exp.store.files import read_json, write_json
from lynx_exp.store.read import CellRecord, read_cell
from tests.run.real_cells import bundled

LYNX = {"name": "lynx", "alpha": 3.0, "beta": 2, "bins": "ceil", "min_batch": 2}
MATCHED = {"name": "oea", "k0": 1, "p": 1.0, "k_max": None, "max_rank": None, "min_batch": 2, "match_active": 4.5}
SAMPLED = TaskConfig(
    name="sampled", subtasks=["mini_gsm8k"], repeats=2, generation=GenerationConfig(temperature=1.0, until=["\n"])
)
POINTS: tuple[dict[str, Any], ...] = (
    {"task": TaskConfig(name="both", subtasks=["mini_truthfulqa_gen", "mini_truthfulqa_mc1"]), "policy": LYNX},
    {"task": TaskConfig(name="mixed", subtasks=["mini_gsm8k", "mini_wmt16"], weights=[2.0, 1.0])},
    {"task": SAMPLED},
    {"task": TaskConfig(name="code", subtasks=["mini_humaneval"])},
    {"task": TaskConfig(name="matched", subtasks=["mini_wmt16"]), "policy": MATCHED, "batching": "continuous"},
)
NAMES = tuple(point["task"].name for point in POINTS)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CellRecord]:
    root = tmp_path_factory.mktemp("ran")
    assert run_cells([bundled(root, batch_size=3, limit=5, **point) for point in POINTS]).failed == 0
    return {record.info["task"]: record for record in done_cells(root)}


@pytest.fixture(autouse=True)
def no_model(cells: dict[str, CellRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_args: Any, **_more: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Engine, "from_pretrained", load)


def parsed(paths: list[Path]) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(results, samples of each task)"""
    results, *samples = paths
    assert results.name.startswith("results_")
    read = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in samples}
    return json.loads(results.read_text()), {name[len("samples_") : name.rindex("_")]: read[name] for name in read}


@pytest.mark.parametrize("name", NAMES)
def test_scores_and_responses_are_the_cell_s(name: str, cells: dict[str, CellRecord], tmp_path: Path) -> None:
    record = cells[name]
    results, samples = parsed(export_lm_eval(record, tmp_path))
    asked = {row["subtask"] for row in record.metrics["metrics"]}
    assert set(results["results"]) == set(samples) == set(results["configs"]) == asked
    for row in record.metrics["metrics"]:
        of_task = results["results"][row["subtask"]]
        assert of_task[f"{row['metric']},{row['filter']}"] == row["value"], "to the last digit"
        error = of_task[f"{row['metric']}_stderr,{row['filter']}"]
        assert error == "N/A" if row["corpus"] else 0 <= error < 1
        assert results["n-samples"][row["subtask"]] == {"original": 400, "effective": row["samples"]}
    for row in record.samples().to_pylist():
        of_doc = [sample for sample in samples[row["subtask"]] if sample["doc_id"] == row["doc_id"]]
        for sample in of_doc:
            for metric in sample["metrics"]:
                key = f"{metric},{sample['filter']}"
                assert json.loads(row["scores"]).get(key, sample[metric]) == sample[metric]
    answers = [row for row in record.responses().to_pylist() if not row["filler"]]
    stored = [row for row in answers if row["finish_reason"] != "scored"]
    for task in asked:
        first = samples[task][0]["filter"]
        given = [text for sample in samples[task] if sample["filter"] == first for text in sample["resps"][0]]
        own = sorted((row for row in stored if row["subtask"] == task), key=lambda row: row["request"])
        if own:
            assert given == [row["response"] for row in own]


def test_what_is_known_of_the_run(cells: dict[str, CellRecord], tmp_path: Path) -> None:
    results, _ = parsed(export_lm_eval(cells["both"], tmp_path))
    info, args = cells["both"].info, results["config"]["model_args"]
    assert args["policy"] == "lynx" and (args["alpha"], args["beta"], args["phases"]) == (3.0, 2, "decode")
    assert (args["pretrained"], args["decode_batch"], args["dtype"]) == ("lynx_tiny", 3, "float32")
    assert results["model_name"] == "lynx_tiny" and results["model_source"] == results["config"]["model"] == "lynx"
    assert (results["config"]["batch_size"], results["config"]["limit"]) == (3, 5)
    ours = results["lynx_exp"]
    assert (ours["cell_id"], ours["pair_id"]) == (info["cell_id"], info["pair_id"])
    assert ours["active_experts"] == cells["both"].metrics["active_experts"] and ours["phases"] == "decode"
    assert results["lm_eval_version"] == cells["both"].provenance["packages"]["lm_eval"]
    assert "metrics" not in ours and str(Path.home()) not in json.dumps(results["lynx_exp"])


def test_a_matched_knob_is_named_as_it_was_set(cells: dict[str, CellRecord], tmp_path: Path) -> None:
    results, _ = parsed(export_lm_eval(cells["matched"], tmp_path))
    matched = cells["matched"].metrics["matched"]
    args = results["config"]["model_args"]
    assert args[matched["parameter"]] == matched["value"] and "match_active" not in args
    assert results["lynx_exp"]["match_active"] == 4.5 and args["batching"] == "continuous"


def test_an_export_again_writes_over_the_one_before(cells: dict[str, CellRecord], tmp_path: Path) -> None:
    first = export_lm_eval(cells["mixed"], tmp_path)
    (first[0].parent / "results_2020-01-01T00-00-00.000000.json").write_text("older")
    before = {path: path.read_bytes() for path in first[1:]}
    again = export_lm_eval(cells["mixed"], tmp_path)
    assert again == first and set(first[0].parent.iterdir()) == set(first)
    assert {path: path.read_bytes() for path in again[1:]} == before
    assert first[0].parent == tmp_path / cells["mixed"].path.name


def test_lm_eval_reads_the_names(cells: dict[str, CellRecord], tmp_path: Path) -> None:
    from lm_eval.utils import get_latest_filename, get_results_filenames, get_sample_results_filenames

    names = [str(path) for path in export_lm_eval(cells["both"], tmp_path)]
    assert get_latest_filename(get_results_filenames(names)) == names[0]
    assert get_sample_results_filenames(names) == names[1:]


def test_scores_that_are_others_now_are_refused(cells: dict[str, CellRecord], tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(cells["both"].path, folder)
    metrics = read_json(folder / "metrics.json")
    metrics["metrics"][0]["value"] = 0.3
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "DONE", read_json(folder / "DONE") | seal(folder, read_json(folder / "DONE")["files"]))
    with pytest.raises(ValueError, match="and 0.3 in metrics.json; run `lynx-results rescore` first"):
        export_lm_eval(read_cell(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_standard_errors_are_lm_eval_s(cells: dict[str, CellRecord], tmp_path: Path) -> None:
    from lm_eval.api.metrics import mean_stderr

    results, samples = parsed(export_lm_eval(cells["both"], tmp_path))
    values = [sample["acc"] for sample in samples["mini_truthfulqa_mc1"]]
    assert results["results"]["mini_truthfulqa_mc1"]["acc_stderr,none"] == mean_stderr(values)


def test_results_never_stand_without_their_samples(
    cells: dict[str, CellRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop at each change of the folder, over an export before; then the same again, which puts it right."""
    record, stops = cells["both"], 0
    folder = tmp_path / record.path.name
    whole = sorted(path.name for path in export_lm_eval(record, tmp_path))
    unlink, replace = os.unlink, os.replace
    left = 0

    def step(path: Any) -> None:
        nonlocal left
        left -= Path(path).parent == folder
        if left == 0 and Path(path).parent == folder:
            raise KeyboardInterrupt

    def stopped_unlink(path: Any, **more: Any) -> None:
        step(path)
        unlink(path, **more)

    def stopped_replace(old: Any, new: Any) -> None:
        step(new)
        replace(old, new)

    for stop in range(1, 20):
        export_lm_eval(record, tmp_path)
        left = stop
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(os, "unlink", stopped_unlink)
            patch.setattr(os, "replace", stopped_replace)
            export_lm_eval(record, tmp_path)
        found = sorted(path.name for path in folder.iterdir())
        assert found == whole or not any(name.startswith("results_") for name in found), (stop, found)
        if left > 0:
            break
        stops += 1
    assert stops == 6, "three files deleted, three put in place"


def test_what_a_killed_export_left_goes_once_it_is_old(cells: dict[str, CellRecord], tmp_path: Path) -> None:
    record = cells["both"]
    folder = tmp_path / record.path.name
    for name in (".new-old", ".new-other"):
        (folder / name).mkdir(parents=True)
        (folder / name / "results_x.json").touch()
    os.utime(folder / ".new-old", (0, 0))
    export_lm_eval(record, tmp_path)
    assert [path.name for path in folder.glob(".*")] == [".new-other"], "another's export may be at work"


@pytest.mark.parametrize("cut", ["results_*.json", "samples_*.jsonl"])
def test_a_full_disk_is_told_and_changes_nothing(
    cut: str, cells: dict[str, CellRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval logs a write that failed, and goes on: a cut file passed for a whole one."""
    from lm_eval.loggers import EvaluationTracker

    before = {path: path.read_bytes() for path in export_lm_eval(cells["mixed"], tmp_path)}
    save = EvaluationTracker.save_results_samples

    def save_and_cut(self: Any, task_name: str, samples: Any) -> None:
        save(self, task_name=task_name, samples=samples)
        file = next(Path(self.output_path).parent.glob(cut))
        file.write_bytes(file.read_bytes()[:-10])

    monkeypatch.setattr(EvaluationTracker, "save_results_samples", save_and_cut)
    with pytest.raises(OSError, match="is the disk full"):
        export_lm_eval(cells["mixed"], tmp_path)
    assert {path: path.read_bytes() for path in next(iter(before)).parent.iterdir()} == before


def test_two_cells_of_one_name_are_not_written_over_each_other(
    cells: dict[str, CellRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for study in ("a", "b"):
        shutil.copytree(cells["sampled"].path, tmp_path / study / cells["sampled"].path.name)
    with pytest.raises(SystemExit) as stop:
        main(["export", "--format", "lm-eval", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert "would be written over it; export a study at a time" in capsys.readouterr().err
