"""Cells through the whole path on a fake engine: records, skipping, resuming, failing, interrupting."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lynx_exp.checks.all_rules import Validation
from lynx_exp.config import MeasureConfig, PackConfig
from lynx_exp.run.interrupt import Interrupted, Preempted
from lynx_exp.store.read import is_done, read_cells
from tests.analysis.fake_study import POLICIES, write_cell

LYNX = {"name": "lynx", "alpha": 3.0, "beta": 2, "min_batch": 2}


def files_of(folder: Path, leave: tuple[str, ...] = ("status.json", "provenance.json", "DONE")) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in leave
    }


def test_the_record_of_a_cell(bench, config):
    report = bench.run([config(LYNX, ("gen", "choice"), measure=MeasureConfig(latency=True, new_tokens=2, repeats=3))])
    (cell,) = read_cells(report.outcomes[0].folder)
    assert cell.done and cell.status["state"] == "done" and cell.status["attempt"] == 1
    assert (
        cell.info["policy_label"] == "lynx(alpha=3, beta=2)"
        and cell.info["num_experts"] == 4
        and cell.info["phases"] == "decode"
    )
    rows = cell.responses().to_pylist()
    assert [row["request"] for row in rows if row["subtask"] == "gen"] == list(range(5))
    assert rows[3]["response"] == "answer 3" and rows[3]["prompt_tokens"] == 1 + len("question 3")
    assert [row["logprob"] for row in rows if row["subtask"] == "choice"] == [-float(n % 3) for n in range(10)]
    plan = json.loads((cell.path / "plan.json").read_text())
    assert sorted(n for lane in plan["gen"]["lanes"] for n in lane) == list(range(5))
    for row in rows:
        assert plan[row["subtask"]]["lanes"][row["lane"]][row["slot"]] == row["request"]
    samples = cell.samples().to_pylist()
    assert [s["score"] for s in samples if s["subtask"] == "gen"] == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert cell.metrics["metrics"][0]["value"] == pytest.approx(0.6)
    timing = cell.timing().to_pylist()
    # three lanes of 2, 2 and 1 requests, all of 3 tokens, have one place each for a window of their two steps
    assert len(timing) == 2 * 3 * 3 * 2 and {row["name"] for row in timing} == {"vanilla", "policy"}
    assert {(row["lane"], row["start_step"], row["live_rows"]) for row in timing} == {(0, 0, 2), (1, 0, 2), (2, 0, 1)}
    assert {row["context"] for row in timing} == {12.0, 13.0}  # BOS, "question N" and one or two tokens
    assert not (cell.path / "lanes").exists()
    assert json.loads((cell.path / "timing.json").read_text())["policy_active_experts"] == 3.0


def test_active_experts_are_those_of_the_steps_that_made_the_tokens(bench, config):
    report = bench.run([config()])
    metrics = read_cells(report.outcomes[0].folder)[0].metrics
    # two lanes of two rows and one of one, each with a step of all its rows (4 and 3 experts) and one of one row (2)
    assert metrics["active_experts"] == pytest.approx((5 * 3.5 + 3 * 2) / 8)
    assert metrics["active_experts_full"] == pytest.approx(3.5)
    assert metrics["live_rows"] == pytest.approx((2 * 2 * 2 + 4) / 8)
    assert metrics["full_steps"] == pytest.approx(2 / 6) and metrics["scored_share"] == 1.0
    assert metrics["by_subtask"]["gen"]["active_experts"] == metrics["active_experts"]
    assert read_cells(report.outcomes[0].folder)[0].status["notes"] == [
        "task vanilla batch 2: lanes drained: 33 % of steps full, 1.5 of 2 rows live"
    ]


def test_a_finished_cell_is_skipped_without_a_model(bench, config):
    bench.run([config()])
    ran = list(bench.engine.ran)
    report = bench.run([config()])
    assert report.outcomes[0].state == "skipped"
    assert bench.engine.ran == ran and bench.engine.opened == 1
    assert "1 cell: 0 done, 1 skipped, 0 failed" in bench.text()


def test_a_cell_that_lost_a_file_runs_again(bench, config):
    folder = bench.run([config()]).outcomes[0].folder
    (folder / "samples.parquet").unlink()
    assert bench.run([config()]).outcomes[0].state == "done"


def test_identical_cells_run_once_and_one_model_serves_all(bench, config):
    report = bench.run([config(), config(LYNX), config(phases="both"), config(pack=PackConfig(max_rows=7))])
    first = report.outcomes[0].folder
    assert [outcome.folder == first for outcome in report.outcomes] == [True, False, True, True]
    assert bench.engine.opened == 1 and len(bench.engine.ran) == 6
    assert "2 cells: 2 done" in bench.text()


def test_pairs_share_the_pair_id(bench, config):
    outcomes = bench.run([config(), config(LYNX), config(batch_size=3)]).outcomes
    pairs = [read_cells(outcome.folder)[0].info["pair_id"] for outcome in outcomes]
    assert pairs[0] == pairs[1] != pairs[2]


@pytest.mark.parametrize("killed_at", [1, 2, 4])
def test_a_killed_cell_resumes_and_ends_with_the_same_bytes(bench, config, killed_at):
    cell = config(LYNX, ("gen", "choice"))
    whole = files_of(bench.run([cell]).outcomes[0].folder)
    shutil.rmtree(cell.results)

    bench.engine.ran.clear()
    bench.engine.fail = lambda run: KeyboardInterrupt() if run == killed_at else None
    kept = {1: 2, 2: 4, 4: 7}[killed_at]
    told = f"0 of 1 cell done, {kept} of 15 requests kept; run the same command to continue"
    with pytest.raises(Interrupted, match=told):
        bench.run([cell])
    (record,) = read_cells(cell.results)
    assert not record.done and record.status["state"] == "interrupted"

    before = list(bench.engine.ran)
    bench.engine.fail = lambda run: None
    folder = bench.run([cell]).outcomes[0].folder
    assert len(bench.engine.ran) == 3 + 5 and len(set(bench.engine.ran)) == 8, "no lane ran twice"
    assert bench.engine.ran[: len(before)] == before
    assert read_cells(folder)[0].status["attempt"] == 2
    assert files_of(folder) == whole


def sigterm_at(lanes_run):
    return lambda run: os.kill(os.getpid(), signal.SIGTERM) if run == lanes_run else None


def test_sigterm_stops_and_leaves_nothing_half_written(bench, config):
    before = signal.getsignal(signal.SIGTERM)
    bench.engine.fail = sigterm_at(4)
    told = "terminated: 1 of 2 cells done, 7 of 10 requests kept; queue the same command again"
    with pytest.raises(Preempted, match=told):
        bench.run([config(), config(LYNX)], packed=False)
    assert signal.getsignal(signal.SIGTERM) is before
    done, stopped = sorted(read_cells(config().results), key=lambda cell: not cell.done)
    assert done.done and stopped.status["state"] == "preempted"
    assert len(list((stopped.path / "lanes").iterdir())) == 1
    assert not list(stopped.path.rglob("*.tmp"))


def test_sigterm_in_a_pack_leaves_the_lanes_of_all_its_cells(bench, config):
    bench.engine.fail = sigterm_at(5)
    with pytest.raises(Preempted, match="0 of 2 cells done"):
        bench.run([config(), config(LYNX)])
    stopped = read_cells(config().results)
    assert [cell.status["state"] for cell in stopped] == ["preempted"] * 2
    assert sorted(len(list((cell.path / "lanes").iterdir())) for cell in stopped) == [2, 3]
    assert not list(Path(config().results).rglob("*.tmp"))


def test_a_damaged_lane_is_set_aside_and_run_again(bench, config):
    bench.engine.fail = lambda run: RuntimeError("stop here") if run == 2 else None
    report = bench.run([config()])
    lane = sorted((report.outcomes[0].folder / "lanes").iterdir())[0]
    lane.write_bytes(lane.read_bytes()[:100])
    bench.engine.fail = lambda run: None
    assert bench.run([config()]).outcomes[0].state == "done"
    assert len(bench.engine.ran) == 4 and bench.engine.ran.count(bench.engine.ran[0]) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_failed_cell_is_recorded_and_the_others_run(bench, config, packed):
    if packed:  # what fails in company is tried alone: this one fails there too
        bench.engine.fail_under = lambda policy: RuntimeError("expert 3 is missing") if policy is None else None
    else:
        errors = iter([RuntimeError("expert 3 is missing")])
        bench.engine.fail = lambda run: next(errors, None) if run == 1 else None
    report = bench.run([config(), config(LYNX)], packed=packed)
    assert [outcome.state for outcome in report.outcomes] == ["failed", "done"] and report.failed == 1
    failed = report.outcomes[0]
    status = json.loads((failed.folder / "status.json").read_text())
    assert status["error"] == {
        **{"kind": "other", "class": "RuntimeError", "message": "expert 3 is missing", "where": None}
    }
    assert "Traceback" in (failed.folder / "error.txt").read_text()
    assert f"failed: {failed.folder}: RuntimeError: expert 3 is missing" in bench.text()


def test_all_configs_are_checked_before_the_first_runs(bench, config):
    with pytest.raises(ValueError, match="keep_experts=5: must lie in 2..4"):
        bench.run([config(), config({"name": "lynx_v1_latency", "keep_experts": 5})])
    with pytest.raises(ValueError, match="unknown; known: gen, choice"):
        bench.run([config(), config(subtasks=("nope",))])
    assert bench.engine.opened == 0


def test_what_then_cannot_do_costs_no_cell(bench, config, capsys, monkeypatch):
    import analysis

    def refuse(*_args, **_more):
        raise RuntimeError("no ink")

    monkeypatch.setattr(analysis, "write_figures", refuse, raising=False)
    assert bench.run([config(then=["figures"])]).outcomes[0].state == "done"
    assert "warning: figures of" in capsys.readouterr().err


def test_nothing_in_a_record_names_the_home_folder(bench, config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = bench.run([config()]).outcomes[0].folder
    for name, content in files_of(folder, leave=()).items():
        assert str(tmp_path).encode() not in content, name


def test_match_active_sets_the_knob_on_documents_that_are_not_scored(bench, config):
    policy = {"name": "lynx_v1_latency", "keep_experts": 4, "min_batch": 2, "match_active": 2.5}
    report = bench.run([config(policy, limit=4), config(policy | {"match_active": 3}, limit=4)])
    first, second = read_cells(report.outcomes[0].folder)[0], read_cells(report.outcomes[1].folder)[0]
    assert first.info["policy_label"] == "lynx_v1_latency(match_active=2.5)"
    assert first.info["policy_params"] == {"min_batch": 2, "match_active": 2.5}
    assert first.metrics["matched"] == {"parameter": "keep_experts", "value": 3, "active": 2.6, "target": 2.5}
    assert first.info["cell_id"] != second.info["cell_id"] and first.info["pair_id"] == second.info["pair_id"]
    assert bench.engine.calibrated == [[f"question {n}" for n in range(4, 36)]] * 2
    assert {policy.keep_experts for policy, _ in bench.engine.acted if policy is not None} == {3}
    vanillas = [policy for policy, _ in bench.engine.acted if policy is None]
    assert len(vanillas) == 1, "vanilla's responses are made once for both"


def test_a_match_that_comes_not_near_is_said(bench, config):
    bench.run([config({"name": "oea", "k0": 1, "match_active": 3.0})])
    assert "wanted" not in bench.text()
    bench.run([config({"name": "oea", "k0": 1, "match_active": 0.9})])
    assert "0.90 active experts wanted; the nearest that k0 allows is 1.00 (3)" in bench.text()


def test_the_value_that_match_active_replaces_need_not_suit_the_model(bench, config):
    """4 experts, a policy's default, are fewer than the 8 of a token of many a model."""
    (cell,) = bench.run([config({"name": "lynx_v1_latency", "keep_experts": 1, "match_active": 2.5})]).outcomes
    assert cell.state == "done"
    with pytest.raises(ValueError, match="keep_experts=1: must lie in 2..4"):
        bench.run([config({"name": "lynx_v1_latency", "keep_experts": 1})])


def test_match_active_with_all_documents_scored_takes_the_first(bench, config):
    bench.run([config({"name": "oea", "k0": 1, "match_active": 3.0})])
    (prompts,) = bench.engine.calibrated
    assert prompts[:2] == ["question 0", "question 1"]


def test_fidelity_is_recorded(bench, config):
    report = bench.run([config(LYNX, ("gen", "choice"), fidelity=True)])
    (cell,) = read_cells(report.outcomes[0].folder)
    rows = cell.fidelity().to_pylist()
    assert len(rows) == 5 + 10 and {row["subtask"] for row in rows} == {"gen", "choice"}
    assert cell.metrics["kl"] == pytest.approx(0.1) and cell.metrics["selection_us"] == 12.5
    tokens = sum(row["tokens"] for row in rows)
    assert cell.metrics["agreement"] == pytest.approx(1 - len(rows) / tokens)
    assert cell.metrics["by_subtask"]["gen"]["agreement"] == pytest.approx(2 / 3)
    (cell.path / "fidelity.parquet").unlink()
    assert bench.run([config(LYNX, ("gen", "choice"), fidelity=True)]).outcomes[0].state == "done"


def test_tokens_are_recorded_for_policies_and_vanilla(bench, config):
    for policy, fidelity in ((LYNX, True), ({"name": "vanilla"}, False)):
        report = bench.run([config(policy, ("gen", "choice"), tokens=True, fidelity=fidelity)])
        (cell,) = read_cells(report.outcomes[0].folder)
        tokens = cell.tokens().to_pylist()
        fed = 5 * 2  # each of five responses has three tokens, the last of which is never fed
        of_gen = [row for row in tokens if row["subtask"] == "gen"]
        assert len(of_gen) == fed * bench.engine.num_layers
        assert [(row["step"], row["layer"], row["experts"]) for row in of_gen[:4]] == [
            (0, 0, [0]),  # a slot that runs nothing is not there
            (0, 1, [2, 3]),
            (1, 0, [0]),
            (1, 1, [2, 3]),
        ]
        assert (of_gen[2]["kl"], of_gen[2]["confidence"]) == (0.125, 0.25)
        assert (cell.fidelity() is not None) == fidelity
        (cell.path / "tokens.parquet").unlink()
        assert not is_done(cell.path), "DONE counts it"


def test_changed_assignments_are_recorded(bench, config):
    for policy, total in ((LYNX, 4), ({"name": "vanilla"}, 0)):
        (cell,) = read_cells(bench.run([config(policy)]).outcomes[0].folder)
        steps = cell.steps().to_pylist()
        assert sum(row["changed"] for row in steps if row["lane"] == 0) == total
        assert cell.prefill() is None


def test_prefills_and_sections_are_recorded(bench, config):
    measure = MeasureConfig(latency=True, windows=3, new_tokens=2, prefill=True, breakdown=True, context=11)
    (cell,) = read_cells(bench.run([config(LYNX, measure=measure)]).outcomes[0].folder)
    timing = cell.timing().to_pylist()
    prefills = [(row["name"], row["step"], row["ms"]) for row in timing if "prefill" in row["name"]]
    assert prefills == [("vanilla prefill", 0, 20.0)] * 3 + [("policy prefill", 0, 21.0)] * 3
    info = json.loads((cell.path / "timing.json").read_text())
    assert (info["context"], info["prefill_tokens"]) == (11, 11 * timing[0]["live_rows"])
    assert (info["vanilla_prefill_active_experts"], info["policy_prefill_active_experts"]) == (3.5, 3.5)
    sections = cell.breakdown().to_pylist()
    assert len(sections) == 2 * 3 * 5 and {row["name"] for row in sections} == {"vanilla", "policy"}


def test_a_run_too_short_for_a_window_says_so_and_keeps_its_scores(bench, config):
    measure = MeasureConfig(latency=True, new_tokens=3)
    (outcome,) = bench.run([config(LYNX, measure=measure)]).outcomes
    (cell,) = read_cells(outcome.folder)
    said = "not timed: measure.new_tokens=3: the longest lane of this run has 2 decode steps; give at most 2"
    assert cell.done and cell.timing() is None and bench.engine.measured == 0
    assert said in [note.partition(": ")[2] for note in cell.status["notes"]]
    assert "hash" not in {finding.rule for finding in Validation(root=outcome.folder).run()}, "no file is missed"


def test_a_context_beyond_the_model_costs_its_cell(bench, config):
    bench.engine.context_length = 60
    measure = MeasureConfig(latency=True, new_tokens=2, context=59)
    (outcome,) = bench.run([config(LYNX, measure=measure)]).outcomes
    assert (
        outcome.state == "failed"
        and "measure.context=59: with measure.new_tokens=2 beyond the model's 60" in outcome.error
    )


def test_layers_reach_the_engine_and_tell_cells_apart(bench, config):
    report = bench.run([config(LYNX), config(LYNX, layers="1:")])
    assert [acts["layers"] for _, acts in bench.engine.acted] == [None, "1:"]
    infos = [read_cells(outcome.folder)[0].info for outcome in report.outcomes]
    assert infos[1]["policy_label"] == "lynx(alpha=3, beta=2, layers=1:)"
    assert infos[0]["cell_id"] != infos[1]["cell_id"] and infos[0]["pair_id"] == infos[1]["pair_id"]


def test_the_study_that_analysis_is_tested_on_has_the_files_and_fields_of_a_real_one(bench, config, tmp_path):
    measure = MeasureConfig(latency=True, new_tokens=2, repeats=2)
    cell = bench.run([config(LYNX, fidelity=True, measure=measure)]).outcomes[0].folder
    policy = next(policy for policy in POLICIES if policy.name == "lynx")
    fake = write_cell(tmp_path / "fake", policy=policy, kl=0.1)
    differ = {"plan.json", "config.yaml"}  # of no use to analysis
    assert {path.name for path in cell.iterdir()} - differ == {path.name for path in fake.iterdir()}
    for name in ("cell.json", "timing.json", "status.json"):
        assert set(json.loads((fake / name).read_text())) == set(json.loads((cell / name).read_text())), name
    for name in ("samples", "responses", "steps", "timing", "fidelity"):
        assert pq.read_schema(fake / f"{name}.parquet").names == pq.read_schema(cell / f"{name}.parquet").names
    metrics, made_up = (json.loads((path / "metrics.json").read_text()) for path in (cell, fake))
    assert set(made_up) == set(metrics) and set(made_up["metrics"][0]) == set(metrics["metrics"][0])
