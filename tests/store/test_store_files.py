"""Whole or absent: writes, lanes, readers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from lynx_exp.store import row_types
from lynx_exp.store.cell_writer import CellWriter
from lynx_exp.store.claims import Claims
from lynx_exp.store.done import seal
from lynx_exp.store.files import file_name, read_json, sha256_of, write_atomically, write_json, write_text
from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.provenance import cpu_model, git_state, provenance, scrub
from lynx_exp.store.read import is_done, read_cell, read_cells
from lynx_exp.store.survey import requests_kept
from lynx_exp.store.table_columns import TABLE_COLUMNS
from lynx_exp.store.tables import OPTIONAL_COLUMNS, RESPONSES, TABLES, LaneRecord, lane_bytes, read_lane


def lane_record(requests=(4, 2)) -> LaneRecord:
    rows = []
    for slot, request in enumerate(requests):
        row = {"subtask": "t", "request": request, "doc_id": request, "lane": 7, "slot": slot, "prompt_hash": "ab"}
        row |= {
            "prompt_tokens": 9,
            "new_tokens": 2,
            "entered_step": 3,
            "token_ids": [7, 2],
            "finish_reason": "eos",
            "response": "ok\n",
            "logprob": None,
            "greedy": None,
            "thought": None,
            "thought_tokens": None,
            "filler": False,
        }
        rows.append(row)
    return LaneRecord(subtask="t", lane=7, rows=rows, live_rows=[2, 1], active_experts=[[3, 4], [2, 2]])


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def half(file):
        file.write(b"{")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert read_json(tmp_path / "a.json") is None
    write_text(tmp_path / "b.json", "{broken")
    assert read_json(tmp_path / "b.json") is None


def test_a_lane_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "t-00007.parquet"
    path.write_bytes(lane_bytes(lane_record(), "plan"))
    back = read_lane(path, "t", 7, [4, 2], "plan")
    assert back == lane_record()
    assert set(back.rows[0]) == set(RESPONSES.names)
    assert [(r["step"], r["layer"], r["live_rows"], r["active_experts"]) for r in back.step_rows()] == [
        (0, 0, 2, 3),
        (0, 1, 2, 4),
        (1, 0, 1, 2),
        (1, 1, 1, 2),
    ]


def test_a_lane_without_decode_steps_comes_back(tmp_path):
    record = LaneRecord(subtask="t", lane=7, rows=lane_record().rows, live_rows=[], active_experts=[])
    (tmp_path / "x.parquet").write_bytes(lane_bytes(record, "plan"))
    assert read_lane(tmp_path / "x.parquet", "t", 7, [4, 2], "plan") == record


def test_lanes_of_another_plan_or_damaged_are_refused(tmp_path):
    path = tmp_path / "lane.parquet"
    path.write_bytes(lane_bytes(lane_record(), "plan"))
    with pytest.raises(ValueError, match="another batch plan"):
        read_lane(path, "t", 7, [4, 2], "other")
    with pytest.raises(ValueError, match="not those of the plan"):
        read_lane(path, "t", 7, [4, 3], "plan")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged"):
        read_lane(path, "t", 7, [4, 2], "plan")


INFO = {
    **{"schema": SCHEMA, "cell_id": "c", "pair_id": "p", "study": "s", "model": "m", "task": "t", "policy": "vanilla"},
    **{"policy_params": {}, "policy_label": "vanilla", "phases": "none", "batch_size": 4},
}


def test_cells_are_found_below_any_folder(tmp_path):
    for name in ("study/b", "study/a", "other/c"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        write_json(folder / "cell.json", INFO | {"name": name})
    (tmp_path / "study/damaged").mkdir()
    (tmp_path / "study/damaged/cell.json").write_text("{")
    write_json(tmp_path / "study/a/metrics.json", {"metrics": []})
    write_json(tmp_path / "study/a/DONE", seal(tmp_path / "study/a", ["metrics.json"]))
    write_json(tmp_path / "study/b/DONE", {"files": {"metrics.json": "?"}})
    found = read_cells(tmp_path)
    assert [cell.info.get("name") for cell in found] == ["other/c", "study/a", "study/b", None]
    assert [cell.done for cell in found] == [False, True, False, False]
    assert [cell.set_aside is None for cell in found] == [True, True, False, False]
    assert found[2].set_aside == "metrics.json: is missing, and DONE names it"
    assert found[3].set_aside is not None and found[3].set_aside.startswith("cell.json: is not JSON: ")
    assert is_done(tmp_path / "study/a") and not is_done(tmp_path / "other/c") and not is_done(tmp_path / "study/b")
    with pytest.raises(ValueError, match="not a folder"):
        read_cells(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no cell"):
        read_cell(tmp_path)
    with pytest.raises(ValueError, match="DONE names it"):
        read_cell(tmp_path / "study/b")


def test_a_changed_file_is_noticed_and_a_copy_is_hashed_once(tmp_path, monkeypatch):
    folder = tmp_path / "cell"
    folder.mkdir()
    write_json(folder / "cell.json", INFO)
    write_json(folder / "metrics.json", {"metrics": []})
    write_json(folder / "DONE", seal(folder, ["cell.json", "metrics.json"]))
    hashed: list[str] = []
    monkeypatch.setattr("lynx_exp.store.done.sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    assert read_cell(folder).done and hashed == []
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # times are those of now
    assert read_cell(tmp_path / "copy").done and hashed == ["cell.json", "metrics.json"]
    assert read_cell(tmp_path / "copy").done and len(hashed) == 2, "only once"
    text = (folder / "cell.json").read_text()
    (folder / "cell.json").write_text(text.replace('"batch_size": 4', '"batch_size": 5'))
    (record,) = read_cells(folder)
    assert not record.done and record.damage is not None and record.damage.startswith("cell.json: is not the file that")


def test_provenance_says_what_ran_and_not_where(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("sys.argv", [f"{tmp_path}/bin/lynx-exp", f"model.id={tmp_path}/model"])
    record = provenance("code", {"id": "m"}, {"t": "d"})
    text = json.dumps(record)
    assert record["command"] == ["lynx-exp", "model.id=~/model"] and str(tmp_path) not in text
    assert record["environment"]["OMP_NUM_THREADS"] == "2"
    assert record["packages"]["torch"].startswith("2.") and record["cpu"] == cpu_model()
    assert set(git_state()) == {"revision", "dirty", "diff_sha256"}
    assert scrub(f"{tmp_path}/x") == "~/x"


@pytest.mark.parametrize("name", ["org/task", "../evil", "..", ".hidden", "a b", "a\nb", "x" * 300, "", "täsk"])
def test_names_of_tasks_become_names_of_files(name, tmp_path):
    made = file_name(name)
    assert (tmp_path / made).parent == tmp_path and (tmp_path / made).resolve().parent == tmp_path.resolve()
    assert made == file_name(name) != file_name(name + "_") and len(made) < 120
    (tmp_path / made).touch()


def test_plain_names_of_tasks_are_their_files_names():
    for name in ("gsm8k", "wmt16-en-de", "mmlu_pro_law", "arc_challenge.v2"):
        assert file_name(name) == name


@pytest.mark.parametrize("name", ["org/task", "../evil"])
def test_lanes_of_any_task_stay_in_their_folder_and_are_found_again(name, tmp_path):
    claims = Claims()
    assert claims.take(tmp_path / "cell")

    def opened():
        plan = {name: {"batch_size": 2, "seed": 0, "digest": "d", "lanes": [[4, 2]]}}
        hold = claims.hold(tmp_path / "cell")
        return CellWriter.open(hold, info={"schema": SCHEMA}, config_yaml="", provenance={}, plan=plan)

    opened().commit(replace(lane_record(), subtask=name, lane=0))
    assert [path.parent.name for path in tmp_path.rglob("*-00000.json")] == ["lanes"]
    assert opened().missing(name) == [] and requests_kept(tmp_path / "cell") == 2
    claims.close()


@pytest.mark.parametrize("table", [name for name in TABLE_COLUMNS if name != "tokens"])
def test_types_of_rows_have_the_columns(table):
    kind = getattr(row_types, f"{table.removesuffix('s').title()}Row")
    assert list(kind.__annotations__) == [column.name for column in TABLE_COLUMNS[table]]
    assert set(OPTIONAL_COLUMNS[table]) <= set(TABLES[table].names)
    assert all(column.unit and column.meaning for column in TABLE_COLUMNS[table])
