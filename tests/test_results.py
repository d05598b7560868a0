"""`lynx-results` report, rescore and export: what a user types, what is printed, and what bad input comes to."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.config import TaskConfig
from lynx_exp.results import main
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.done import seal
from lynx_exp.store.files import read_json, write_json
from tests.quick_figures import quick_figures
from tests.run.real_cells import bundled


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells."""
    root = tmp_path_factory.mktemp("ran")
    task = TaskConfig(name="mini_gsm8k", subtasks=["mini_gsm8k"])
    assert run_cells([bundled(root, task=task, batch_size=size, limit=3) for size in (1, 2)]).failed == 0
    return root


@pytest.fixture
def study(ran: Path, tmp_path: Path) -> Path:
    shutil.copytree(ran, tmp_path / "results")
    return tmp_path / "results" / "default"


def results(*arguments: Any) -> int:
    """The exit code."""
    try:
        main.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def spoil(folder: Path) -> None:
    metrics = read_json(folder / "metrics.json")
    metrics["metrics"][0]["value"] = 0.25
    change(folder, "metrics.json", metrics)


def change(folder: Path, name: str, value: Any) -> None:
    """As if the cell had written it."""
    write_json(folder / name, value)
    write_json(folder / "DONE", seal(folder, read_json(folder / "DONE")["files"]))


def test_rescore_says_what_changed(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(path.parent for path in study.glob("*/DONE"))
    now = read_json(second / "metrics.json")["metrics"][0]["value"]
    spoil(second)
    assert results("rescore", study) == 0
    out, err = capsys.readouterr()
    change = f"mini_gsm8k exact_match,strict-match: 0.25 -> {now:.6g}"
    assert (out, err) == (f"1/2 {first.name}: unchanged\n2/2 {second.name}: {change}\n", "")
    assert results("rescore", second) == 0, "a cell alone"
    assert capsys.readouterr().out == f"1/1 {second.name}: unchanged\n"


def test_export_writes_a_folder_a_cell(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, out in ((["--out", tmp_path / "out"], tmp_path / "out"), ([], study / "lm-eval")):
        assert results("export", "--format", "lm-eval", study, *arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        folders = sorted(out.iterdir())
        assert [line.split(": ")[1] for line in lines] == [f"{folder} (2 files)" for folder in folders]
        for folder in folders:
            (file,) = folder.glob("results_*.json")
            stored = read_json(study / folder.name / "metrics.json")["metrics"][0]["value"]
            assert json.loads(file.read_text())["results"]["mini_gsm8k"]["exact_match,strict-match"] == stored


def test_a_cell_that_cannot_be_stops_no_other(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(path.parent for path in study.glob("*/DONE"))
    spoil(first)
    assert results("export", "--format", "lm-eval", study) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"2/2 {second.name}: ") and out.count("\n") == 1
    assert err.startswith(f"lynx-results: 1/2 {first.name}: error: mini_gsm8k: exact_match,strict-match is ")
    assert err.endswith("run `lynx-results rescore` first\n") and err.count("\n") == 1
    (first / "config.yaml").write_text("policy: [")
    assert results("rescore", study) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == err.count("\n") == 1
    assert err.startswith(f"lynx-results: set aside: {first}: config.yaml: is not the file that DONE names")


def test_a_report_asks_the_prompts_anew(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def browser(file: Path) -> dict[str, Any]:
        return json.loads(file.read_text().split('id="data">')[1].split("</script>")[0])["browser"]

    with quick_figures():
        assert results("report", study) == 0
    out, err = capsys.readouterr()
    assert err == "" and re.fullmatch(rf"{re.escape(str(study))}/report.html \(\d\.\d MiB\)\n", out)
    data = browser(study / "report.html")
    for group in data["groups"]:
        for doc, _, prompt, digest in group["docs"]:
            text = data["texts"][prompt]
            assert text.startswith("Question: ") and hashlib.sha256(text.encode()).hexdigest()[:16] == digest, doc
    for folder in (path.parent for path in study.glob("*/DONE")):
        provenance = read_json(folder / "provenance.json")
        change(folder, "provenance.json", provenance | {"data_sha256": {"mini_gsm8k": "0" * 64}})
    out_file = tmp_path / "new" / "page.html"
    with quick_figures():
        assert results("report", study, "--out", out_file) == 0
    assert [doc[2] for doc in browser(out_file)["groups"][0]["docs"]] == [-1] * 3, "hashes alone"
    assert "mini_gsm8k: no longer what the cell answered: the prompts are the same" in out_file.read_text()
    with quick_figures():
        assert results("report", study, "--out", out_file, "--no-prompts") == 0
    assert "no longer what" not in out_file.read_text()


BAD = (
    (["report", "nowhere"], "nowhere: not a folder"),
    (["report", "."], "holds no finished cell"),
    (["report", ".", "--margin", "0"], "margin=0: must be above 0"),
    (["rescore", "nowhere"], "nowhere: not a folder"),
    (["rescore", "."], "holds no finished cell; give a cell, a study"),
    (["export", "--format", "lm-eval", "."], "holds no finished cell"),
    (["rescore", ".", "--sandbox", "unsafe"], "add --confirm-unsafe-code"),
)


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_is_one_line(
    arguments: list[str],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert results(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("lynx-results: error: ") and text in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["export", "."], "--format"),
        (["export", ".", "--format", "csv"], "lm-eval"),
        (["rescore", ".", "--sandbox", "docker"], "bubblewrap"),
        (["rescored", "."], "rescore"),
    ],
)
def test_what_argparse_refuses(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert results(*arguments) == 2
    assert text in capsys.readouterr().err


def test_ctrl_c(study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_given: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lynx_exp.run.replay.rescore_cells.rescore", stop)
    assert results("rescore", study) == 130
    assert capsys.readouterr().err.startswith("lynx-results: interrupted; ")


def test_neither_needs_a_model_nor_torch(study: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lynx_exp.results.main import main\n"
        f"main(['rescore', {str(study)!r}])\n"
        "found = set(sys.modules) & {'torch', 'transformers', 'wandb', 'matplotlib'}\nassert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("unchanged") == 2, done.stderr


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert results("--help") == 0
    out = capsys.readouterr().out
    assert "lynx-results rescore results/demo" in out and "lynx-results export --format lm-eval results/demo" in out
    for verb, words in (("rescore", "stored responses"), ("export", "results_DATE.json")):
        assert results(verb, "--help") == 0
        assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tabel"], "tabel: unknown verb; known: table, recommend"),
        (["tabel"], "did you mean table?"),
        (["table", "results", "--polcy", "lynx"], "--polcy: unknown option; did you mean --policy?"),
        (["table", "results", "--by", "taks"], "did you mean task?"),
        (["table"], "the following arguments are required: folder; see lynx-results table --help"),
        ([], "the following arguments are required"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(words)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1) and said in err
