"""Faults are results: each has a kind and a message in the cell's status, and the sweep goes on where it can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lynx_exp.config import ModelConfig
from lynx_exp.engine import BatchPlan, Engine, Request
from lynx_exp.engine.requests.argmax import NotANumber, most_likely
from lynx_exp.engine.requests.sampling import Sampling
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.read import read_cells
from tests.run.fakes import TINY

LYNX = {"name": "lynx", "alpha": 1.0, "beta": 1, "min_batch": 2}
ROOT = Path(__file__).parents[2]


def status(outcome):
    return json.loads((outcome.folder / "status.json").read_text())


KINDS = {
    "oom_device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "oom_host": lambda: MemoryError("no room"),
    "nan": lambda: NotANumber("request 3: the model's logits are no numbers after 2 tokens"),
    "io": lambda: OSError(5, "Input/output error"),
    "other": lambda: RuntimeError("surprise"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_has_a_kind_and_costs_its_own_cell(kind, bench, config):
    bench.engine.fail_under = lambda policy: KINDS[kind]() if policy is not None else None
    report = bench.run([config(), config(LYNX)])
    assert [outcome.state for outcome in report.outcomes] == ["done", "failed"]
    found = status(report.outcomes[1])
    assert found["state"] == "failed" and found["error"]["kind"] == kind and found["failures"] == 1
    assert found["error"]["message"] == str(KINDS[kind]())


def test_a_larger_batch_of_what_ran_out_of_memory_is_not_tried(bench, config):
    cells = [config(batch_size=size) for size in (2, 4, 5)] + [config(LYNX, batch_size=5)]

    def fail(policy):
        return MemoryError("no room") if policy is None else None

    bench.engine.fail_under = fail
    report = bench.run(cells, packed=False)
    errors = [outcome.error or "" for outcome in report.outcomes]
    assert errors[0] == "MemoryError: no room" and errors[3] == ""
    for error in errors[1:3]:
        assert error.startswith("not run: batch size 2 of the same cell ran out of memory (no room); ignore_oom=true")
    assert [status(outcome)["state"] for outcome in report.outcomes] == ["failed", "skipped", "skipped", "done"]
    assert status(report.outcomes[2])["error"]["kind"] == "oom_host" and status(report.outcomes[2])["failures"] == 0
    bench.engine.fail_under = lambda policy: None
    assert [o.state for o in bench.run(cells[1:]).outcomes] == ["failed", "failed", "skipped"], "remembered"
    tried = bench.run([replace(cell, ignore_oom=True) for cell in cells[1:3]])
    assert [outcome.state for outcome in tried.outcomes] == ["done", "done"]
    assert [outcome.state for outcome in bench.run(cells).outcomes] == ["done", "skipped", "skipped", "skipped"]


def test_a_cell_that_fails_again_and_again_is_left_alone(bench, config):
    bench.engine.fail = lambda run: RuntimeError("surprise")
    for failures in (1, 2, 3):
        (outcome,) = bench.run([config()]).outcomes
        assert status(outcome)["failures"] == failures
    ran = len(bench.engine.packs)
    (outcome,) = bench.run([config()]).outcomes
    assert outcome.error == "not run: failed 3 times in a row (surprise); max_failures=null tries again"
    assert len(bench.engine.packs) == ran and status(outcome)["attempt"] == 3
    assert [past["state"] for past in status(outcome)["attempts"]] == ["failed", "failed"]
    bench.engine.fail = lambda run: None
    assert bench.run([config(max_failures=None)]).outcomes[0].state == "done"


def test_failures_that_got_further_do_not_add_up(bench, config):
    for _ in range(2):
        ran = len(bench.engine.ran)
        bench.engine.fail = lambda run, ran=ran: RuntimeError("surprise") if run == ran + 1 else None
        (outcome,) = bench.run([config()]).outcomes
        assert status(outcome)["failures"] == 1
    assert status(outcome)["lanes"] == 2


def test_a_model_that_does_not_load_costs_its_own_cells(bench, config):
    other = ModelConfig(kind="random", id="mixtral", config=dict(TINY) | {"num_hidden_layers": 3})
    cells = [config(), config(model=other), config(LYNX, model=other)]
    good = bench.engine

    def open_engine(asked):
        if asked.model.config["num_hidden_layers"] == 3:
            raise ValueError("weights are missing")
        return good

    report = run_cells(cells, console=Console(file=StringIO()), open_engine=open_engine, load=bench.load)
    assert [outcome.state for outcome in report.outcomes] == ["done", "failed", "failed"]
    for outcome in report.outcomes[1:]:
        assert "weights are missing" in str(outcome.error)
        assert status(outcome)["error"] == {
            **{"kind": "load", "class": "ValueError", "message": "weights are missing", "where": None}
        }
    with pytest.raises(ValueError, match="model.id=mixtral: weights are missing"):
        run_cells(cells[1:], console=Console(file=StringIO()), open_engine=open_engine, load=bench.load)


@pytest.mark.parametrize(("answer", "reason", "told"), [("answer 2", "length", "cut off"), ("  ", "eos", "are empty")])
def test_what_says_nothing_is_marked_as_invalid(answer, reason, told, bench, config, monkeypatch):
    made = type(bench.engine)._lane

    def lane(self, *args):
        result = made(self, *args)
        count = len(result.requests)
        return replace(result, finish_reasons=[reason] * count, texts=[answer] * count)

    monkeypatch.setattr(type(bench.engine), "_lane", lane)
    answers = "lynx_exp.run.run_pack.responses_of"
    monkeypatch.setattr(answers, lambda task, rows: [f"answer {row['request']}" for row in rows])
    random = bench.run([config()]).outcomes[0]
    assert random.state == "done" and status(random)["invalid"] == [], "random weights have nothing to say"
    monkeypatch.setattr("lynx_exp.run.invalid_results._is_random", lambda cell: False)
    (outcome,) = bench.run([config(LYNX)]).outcomes
    (line,) = status(outcome)["invalid"]
    assert outcome.state == "done" and line.startswith("gen: all 5 responses ") and told in line


def test_a_policy_that_never_acted_is_marked_as_invalid(bench, config, monkeypatch):
    made = type(bench.engine)._lane
    monkeypatch.setattr(
        type(bench.engine), "_lane", lambda self, *args: replace(made(self, *args), live_rows=[], active_experts=[])
    )
    vanilla, lynx, both = bench.run([config(), config(LYNX), config(LYNX, phases="both")]).outcomes
    assert status(vanilla)["invalid"] == [] == status(both)["invalid"]
    assert status(lynx)["state"] == "done"
    assert status(lynx)["invalid"] == ["gen: no decode step, lynx(alpha=1, beta=1) never acted: this is vanilla's"]


SIZES = {
    **{"vocab_size": 60, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=1)])
def test_logits_that_are_no_numbers_end_what_they_touch(sampling):
    engine = Engine.from_config("mixtral", SIZES | {"eos_token_id": None}, seed=0, device="cpu", dtype="float32")
    requests = [Request(prompt_ids=(3, 4, n), max_new_tokens=4, sampling=sampling) for n in range(3)]
    plan = BatchPlan.static(3, 3)
    assert list(engine.run_lanes(requests, plan))
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[7] = float("nan")
    bad = [Request(prompt_ids=(3, 7, n), max_new_tokens=4, sampling=sampling) for n in range(3)]
    with pytest.raises(NotANumber, match="request 0: the model's logits are no numbers after 0 tokens"):
        list(engine.run_lanes(bad, plan))
    choices = [Request(prompt_ids=(3, 7), continuation_ids=(n, 4)) for n in range(3)]
    with pytest.raises(NotANumber, match="along its continuation"):
        list(engine.score_lanes(choices, plan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_most_likely_token_is_the_first_of_equal_ones(dtype):
    logits = torch.randint(0, 4, (200, 300), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(most_likely(logits), logits.argmax(-1))
    logits[3, 5], logits[4, 0], logits[5] = float("nan"), float("inf"), float("-inf")
    assert most_likely(logits)[3:6].tolist() == [-1, -1, -1] and (most_likely(logits)[6:] >= 0).all()


@pytest.mark.slow
def test_a_terminated_command_asks_to_be_queued_again(tmp_path):
    words = ["task=mini_gsm8k", "policy=vanilla,lynx", "batch_size=1,4", "limit=64", f"results={tmp_path}/results"]
    call = [sys.executable, "-c", "from lynx_exp.cli import main; main()", "-m", *words]
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while (
        not any(files for at, _, files in os.walk(tmp_path) if at.endswith("/lanes"))
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        os.sched_yield()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75 and said.strip().splitlines()[-1].endswith(
        "queue the same command again to continue"
    )
    assert {cell.status["state"] for cell in read_cells(tmp_path)} <= {"done", "preempted"}
    assert subprocess.run(call, cwd=ROOT, capture_output=True).returncode == 0
    assert all(cell.done for cell in read_cells(tmp_path))
