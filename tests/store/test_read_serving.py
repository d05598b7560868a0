"""What `vllm bench serve` saved, read into one form."""

from __future__ import annotations

import json

import pytest

from lynx_exp.store.read_serving import STOCK, bench_files, file_of, read_bench, read_runs, read_serving
from tests.vllm.bench_run import RUN, lynx, saved


def test_a_run_of_a_stock_server(tmp_path):
    record = read_bench(saved(tmp_path / "run.json"))
    assert (record["policy"], record["policy_label"], record["phases"]) == (STOCK, STOCK, "none")
    assert (record["model"], record["request_rate"], record["max_concurrency"]) == ("lynx_tiny", None, 4)
    assert record["run_number"] == 1 and record["experts"] is None
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "p99"):
            assert record[f"{metric}_{statistic}_ms"] == RUN[f"{statistic}_{metric}_ms"]


@pytest.mark.parametrize(
    ("more", "label"),
    [
        (lynx(), "lynx(alpha=1, beta=2)"),
        (lynx(layers="1:"), "lynx(alpha=1, beta=2, layers=1:)"),
        ({"additional_config": json.dumps(lynx()["additional_config"])}, "lynx(alpha=1, beta=2)"),
        ({"additional_config": {"lynx": {"policy": "lynx"}}}, "lynx(alpha=3, beta=2)"),
        ({"additional_config": {"other": 1}}, STOCK),
        ({"policy": "lynx", "alpha": "0.5", "beta": "1"}, "lynx(alpha=0.5, beta=1)"),
        ({"policy": "stock"}, STOCK),
        ({"policy": "vanilla"}, "vanilla"),
    ],
)
def test_policies_are_labelled_as_in_cells(tmp_path, more, label):
    assert read_bench(saved(tmp_path / "run.json", **more))["policy_label"] == label


def test_the_report_of_the_plugin_beside_it(tmp_path):
    report = {"decode_steps": 9, "experts_before": [8.0, 6.0], "experts_after": [4.0, 3.0], "by_rows": {}}
    path = saved(tmp_path / "SERVE--lynx" / "run=0.json", **lynx(report="elsewhere/lynx.json"))
    assert read_bench(path)["experts"] is None
    (tmp_path / "lynx.json").write_text(json.dumps(report))
    assert read_bench(path)["experts"] == {"before": 7.0, "after": 3.5, "decode_steps": 9, "by_rows": {}}


def test_folders_of_a_sweep_hold_runs_and_other_files(tmp_path):
    wanted = [saved(tmp_path / "a" / "run=0.json"), saved(tmp_path / "a" / "run=1.json")]
    saved(tmp_path / "a" / "warmup.json")
    (tmp_path / "a" / "summary.json").write_text(json.dumps([RUN]))
    (tmp_path / "summary.csv").touch()
    assert list(bench_files([tmp_path])) == wanted
    assert list(bench_files([wanted[1]])) == wanted[1:]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a result of `vllm bench serve --save-result`"),
        (json.dumps({"avg_latency": 1.0}), "not a result"),
        (json.dumps(RUN | {"completed": 0}), "no request was completed"),
        (json.dumps(RUN | {"policy": "lnyx"}), "metadata policy=lnyx: unknown policy; did you mean lynx?"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, content, says):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_bench(path)
    assert says in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(ValueError, match="nothing: no such file or folder"):
        list(bench_files([tmp_path / "nothing"]))
    with pytest.raises(ValueError, match="holds no result"):
        list(bench_files([tmp_path]))


def test_a_run_is_kept_once(tmp_path):
    record = read_bench(saved(tmp_path / "run.json"))
    other = read_bench(saved(tmp_path / "other.json", run_number=2))
    assert file_of(tmp_path, record) == file_of(tmp_path, dict(record)) != file_of(tmp_path, other)
    assert read_serving(tmp_path) == []


def test_several_runs_in_one_file(tmp_path):
    """As `--append-result` writes them."""
    path = tmp_path / "runs.json"
    path.write_text("\n".join(json.dumps(RUN | {"max_concurrency": size, "run_number": None}) for size in (1, 4)))
    assert list(bench_files([tmp_path])) == [path]
    records = read_runs(path)
    assert [record["max_concurrency"] for record in records] == [1, 4]
    assert [record["run_number"] for record in records] == [0, 1] and len({file_of(tmp_path, r) for r in records}) == 2
    path.write_text(path.read_text()[:-9])
    assert list(bench_files([tmp_path])) == [path], "a cut file is not passed over"
    with pytest.raises(ValueError, match=r"runs\.json: not a result of .*: is not JSON"):
        read_runs(path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"duration": "2 s"}, "duration: '2 s', not a number"),
        ({"request_rate": "fast"}, "request_rate: 'fast', not a number of requests a second"),
        ({"max_concurrency": 2**70}, "max_concurrency: an integer of more than 64 bits"),
        ({"median_tpot_ms": float("nan")}, "median_tpot_ms: nan, not a finite number"),
        ({"additional_config": [1]}, "not the settings of a server"),
        ({"completed": 0}, "no request was completed"),
    ],
)
def test_wrong_values_are_one_line(tmp_path, more, said):
    with pytest.raises(ValueError) as error:
        read_runs(saved(tmp_path / "run.json", **more))
    assert said in str(error.value) and str(error.value).startswith(f"{tmp_path}/run.json: ")
