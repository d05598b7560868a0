"""Data, models and results that are not what they should be: one line, the right exit code, no model loaded."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lynx_exp import cli
from lynx_exp.engine import Engine
from lynx_exp.models import BUNDLED
from lynx_exp.results import main as results
from tests.analysis.fake_study import POLICIES, write_cell

ROW = {"question": "q", "answer": "a\n#### 1"}


def jsonl(rows: list[object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


DATA: dict[str, tuple[str, bytes, str]] = {
    "no such file": ("other.jsonl", b"", "no such file or folder"),
    "empty": ("gsm8k.jsonl", b"", "must hold at least one document"),
    "not json": ("gsm8k.jsonl", b"question: q\n", "line 1: not JSON"),
    "cut off": ("gsm8k.jsonl", jsonl([ROW]) + b'{"question": "q', "line 2: not JSON"),
    "not objects": ("gsm8k.jsonl", b"[1, 2]\n", "each an object with the task's fields"),
    "no text": ("gsm8k.jsonl", b"\xff\xfe\x00", "cannot be read"),
    "other fields": ("gsm8k.jsonl", jsonl([{"prompt": "q"}] * 9), "lack a field that gsm8k asks for"),
    "half of the fields": ("gsm8k.jsonl", jsonl([{"question": "q"}] * 9), "lack a field that gsm8k asks for"),
    "too few for the examples": ("gsm8k.jsonl", jsonl([ROW] * 2), "too few documents to take gsm8k's examples"),
    "not gzip": ("gsm8k.jsonl.gz", b"plain", "cannot be read"),
    "gzip cut off": ("gsm8k.jsonl.gz", gzip.compress(jsonl([ROW] * 9))[:-9], "cannot be read"),
    "not parquet": ("gsm8k.parquet", b"PAR1 but no more", "gsm8k.parquet"),
    "another ending": ("gsm8k.csv", b"question,answer\n", "no documents for gsm8k"),
}


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    def load(*_args, **_more):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Engine, "from_pretrained", load)
    monkeypatch.setattr(Engine, "from_config", load)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], command: str = "lynx-exp") -> str:
    if command == "lynx-exp":
        assert cli.run(arguments) == 2
    else:
        with pytest.raises(SystemExit) as stop:
            results.main(arguments)
        assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"{command}: error: "), err
    return err


@pytest.mark.parametrize("what", DATA)
def test_data(what, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, content, expected = DATA[what]
    Path("data").mkdir()
    if what != "no such file":
        Path("data", name).write_bytes(content)
    where = "data/gone.jsonl" if what == "no such file" else "data"
    assert expected in refused(["task=gsm8k", f"task.data={where}", "truncate=left"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def config_with(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "no experts": (config_with(num_local_experts=None), "not a Mixture-of-Experts model"),
    "one expert": (config_with(num_local_experts=1), "not a Mixture-of-Experts model"),
    "no top-k": (config_with(num_experts_per_tok=None), "not a Mixture-of-Experts model"),
}


@pytest.mark.parametrize("what", MODELS)
def test_models(what, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BUNDLED["lynx_tiny"], "model")
    spoil, expected = MODELS[what]
    spoil(Path("model"))
    line = refused(["model=hub", "model.id=model"], capsys)
    assert expected in line and "model.id=model" in line


def test_results_that_cannot_be_written(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").write_text("a file")
    assert "results=results: cannot be written to" in refused(["limit=1"], capsys)


def other_version(folder: Path) -> None:
    path = next(folder.rglob("cell.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 1}))


def damaged(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = next(folder.rglob(name))
        path.write_bytes(path.read_bytes()[:-20])

    return spoil


RESULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (shutil.rmtree, "not"),
    "no cell": (lambda folder: [path.unlink() for path in folder.rglob("cell.json")], "no finished cell"),
}


@pytest.mark.parametrize("verb", ["table", "figures"])
@pytest.mark.parametrize("what", RESULTS)
def test_results(what, verb, capsys, tmp_path):
    folder = tmp_path / "results"
    for policy in POLICIES[:2]:
        write_cell(folder, policy=policy)
    spoil, expected = RESULTS[what]
    spoil(folder)
    assert expected in refused([verb, str(folder)], capsys, "lynx-results")


ASIDE: dict[str, tuple[Callable[[Path], None], str]] = {
    "another version": (other_version, "written in form 1 of records"),
    "samples damaged": (damaged("samples.parquet"), "samples.parquet: cannot be read"),
    "steps damaged": (damaged("steps.parquet"), "steps.parquet: cannot be read"),
    "responses damaged": (damaged("responses.parquet"), "responses.parquet: cannot be read"),
}


@pytest.mark.parametrize("what", ASIDE)
def test_a_cell_that_is_set_aside_is_named_beside_the_others(what, capsys, tmp_path):
    for policy in POLICIES[:2]:
        write_cell(tmp_path, policy=policy)
    spoil, expected = ASIDE[what]
    spoil(tmp_path)
    with pytest.raises(SystemExit) as stop:
        results.main(["table", str(tmp_path)])
    out, err = capsys.readouterr()
    said = " ".join(out.split())
    assert stop.value.code == 1 and err == ""
    assert "! set aside: " in said and expected in said and "mini_gsm8k" in said
