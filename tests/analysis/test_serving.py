"""Runs of a load generator in a table and a figure, with the accuracy of cells beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.page.document import page
from analysis.serving_runs import frame
from lynx_exp.results.main import main
from tests.analysis.fake_study import POLICIES, write_cell
from tests.vllm.bench_run import lynx, saved


@pytest.fixture
def bench(tmp_path):
    """Two loads, two runs each, of the stock server and of lynx, whose TPOT is 1.25 and 2 times shorter."""
    for load, shorter in ((4, 1.25), (16, 2.0)):
        for run in range(2):
            common = {"max_concurrency": load, "run_number": run, "median_ttft_ms": 30.0}
            tpot = 10.0 + run
            saved(tmp_path / "bench" / f"stock-{load}-{run}.json", **common, median_tpot_ms=tpot)
            saved(tmp_path / "bench" / f"lynx-{load}-{run}.json", **common, **lynx(), median_tpot_ms=tpot / shorter)
    return tmp_path / "bench"


def imported(bench, study, *more):
    main(["import", "--format", "vllm-bench", "--to", str(study), str(bench), *more])


def test_the_table_compares_under_the_same_load(bench, tmp_path, capsys):
    study = tmp_path / "study"
    imported(bench, study)
    made = frame(study)
    assert list(made["policy"]) == ["stock", "lynx"] * 2 and list(made["runs"]) == [2] * 4
    assert made["speedup"].tolist() == pytest.approx([1.0, 1.25, 1.0, 2.0])
    assert made["speedup_low"].tolist() == pytest.approx([1.0, 1.25, 1.0, 2.0])
    assert made["points"].isna().all(), "no cell to take accuracy from"
    out = capsys.readouterr().out
    assert "lynx(alpha=1, beta=2)" in out and "16 at once" in out and "2.00 (2.00 to 2.00)" in out
    assert {path.name for path in (study / "figures").iterdir()} == {"serving.pdf", "serving.png", "serving.csv"}
    assert len(pd.read_csv(study / "figures" / "serving.csv", comment="#")) == 4


def test_imported_twice_is_there_once(bench, tmp_path):
    study = tmp_path / "study"
    imported(bench, study)
    imported(bench, study)
    assert len(list((study / "serving").glob("*.json"))) == 8
    main(["import", "--format", "vllm-bench", "--to", str(study)])


def test_accuracy_comes_from_the_cells_of_the_same_policy(bench, tmp_path):
    study = tmp_path / "study"
    of = {policy.name: policy for policy in POLICIES}
    cells = [write_cell(tmp_path, policy=of[name], batch_size=16, study="study") for name in ("vanilla", "lynx")]
    label = json.loads((cells[1] / "cell.json").read_text())["policy_label"]
    imported(bench, study)
    for path in (study / "serving").glob("*lynx_alpha*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"policy_label": label}))
    points = frame(study).set_index("policy")["points"]
    assert (points["stock"] == 0).all() and points["lynx"].notna().all() and points["lynx"].nunique() == 1


def test_nothing_to_show_is_bad_input(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["import", "--format", "vllm-bench", "--to", str(tmp_path)])
    assert ended.value.code == 2
    assert "keeps no run of a load generator; give FILES" in capsys.readouterr().err


@pytest.mark.slow
def test_the_report_holds_them(bench, tmp_path, capsys):
    study = tmp_path / "study"
    for policy in POLICIES[:2]:
        write_cell(tmp_path, policy=policy, batch_size=16, study="study")
    assert 'id="served"' not in page(tmp_path)
    hostile = json.loads((bench / "stock-4-0.json").read_text()) | {"model_id": "<script>alert(1)</script>"}
    (bench / "stock-4-0.json").write_text(json.dumps(hostile))
    imported(bench, study)
    capsys.readouterr()
    made = page(tmp_path)
    section = made[made.index('<section id="served"') :]
    section = section[: section.index("</section>")]
    assert "16 at once" in section and "2.00 (2.00 to 2.00)" in section and "data:image/png;base64" in section
    assert "script&gt;" in section and "<script" not in section
    assert made == page(tmp_path)


def test_the_default_load_has_a_row_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No bound and no rate: all requests come at once."""
    for number, more in enumerate(({}, lynx())):
        saved(tmp_path / "bench" / f"{number}.json", max_concurrency=None, request_rate="inf", **more)
    main(["import", "--format", "vllm-bench", "--to", str(tmp_path / "study"), str(tmp_path / "bench")])
    out = capsys.readouterr().out
    assert "all 32 at once" in out and str(tmp_path / "study" / "figures" / "serving.png") in out


def test_a_damaged_run_is_named_and_the_others_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "bench" / "a.json")
    main(["import", "--format", "vllm-bench", "--to", str(tmp_path / "study"), str(tmp_path / "bench")])
    (tmp_path / "study" / "serving" / "b.json").write_text("[1]")
    with pytest.raises(SystemExit) as stop:
        main(["import", "--format", "vllm-bench", "--to", str(tmp_path / "study")])
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and "4 at once" in out
    assert err == "lynx-results: set aside: serving/b.json: holds a list, not fields with names\n"
