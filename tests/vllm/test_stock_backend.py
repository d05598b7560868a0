"""Inside stock vLLM: lanes, scores, latency and cells of `backend=vllm`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lynx_exp.routing import build_policy
from tests.vllm.stock import (
    MARKS,
    POLICIES,
    REQUIRED,
)

pytestmark = MARKS


@pytest.fixture(scope="module")
def backend() -> Iterator[Any]:
    from lynx_exp.vllm_backend import VllmEngine, open_llm

    engine = VllmEngine(open_llm("lynx_tiny", dtype="float32", device="cpu", max_rows=96, memory_gib=0.5))
    yield engine
    engine.close()


def asked(engine: Any, count: int = 16) -> list[Any]:
    from lynx_exp.engine import Request

    texts = [f"Question: Ann has {2 + i} pens and loses {i % 3}. How many?\nAnswer:" for i in range(count)]
    return [
        Request(prompt_ids=tuple(engine.tokenizer(text).input_ids), max_new_tokens=10 + i % 9, stop=("\n\n",))
        for i, text in enumerate(texts)
    ]


def test_lanes_of_many_policies_are_those_of_the_transformers_backend(backend):
    """Tokens, texts, ends, rows, active experts and assignments changed of every lane, though all share one engine and
    kernels differ."""
    from lynx_exp import Engine
    from lynx_exp.engine import BatchPlan

    other = Engine.from_pretrained("lynx_tiny", dtype="float32", device="cpu")
    requests = asked(backend)
    policies = [
        None,
        *(build_policy(name, **REQUIRED.get(name, {})) for name in ("no_drop", "lynx", "oea", "coverage")),
    ]
    policies += [POLICIES["lynx_v1_latency"], POLICIES["random_keep"], POLICIES["sere"]]
    plans = [BatchPlan.static(16, 4, 1), BatchPlan.static(16, 16, 1)]
    made = [(plan, policy, "decode") for plan in plans for policy in policies]
    made += [(plans[0], POLICIES["lynx_v1_latency"], phases) for phases in ("prefill", "both")]
    jobs = [backend.job(requests, plan, policy, phases) for plan, policy, phases in made]
    own = {(job, lane.lane): lane for job, lane in backend.run_jobs(jobs)}
    same = {
        key: own[key] == lane
        for number, (plan, policy, phases) in enumerate(made)
        for lane in other.run_lanes(requests, plan, policy, phases)
        for key in [(number, lane.lane)]
    }
    assert len(same) == len(own) and all(same.values()), [key for key, equal in same.items() if not equal]


def test_scores_are_those_of_the_transformers_backend(backend):
    from dataclasses import replace

    from lynx_exp import Engine
    from lynx_exp.engine import BatchPlan

    other = Engine.from_pretrained("lynx_tiny", dtype="float32", device="cpu")
    texts = [" three pens are left", " none", " it is 4", " five and two"]
    requests = [
        replace(request, continuation_ids=tuple(backend.tokenizer(texts[n % 4]).input_ids[1:]))
        for n, request in enumerate(asked(backend, 8))
    ]
    plan = BatchPlan.in_order(8, 4)
    for policy in (None, POLICIES["lynx_v1_latency"]):
        mine, theirs = (
            sorted(each.score_lanes(requests, plan, policy), key=lambda lane: lane.lane) for each in (backend, other)
        )
        for one, two in zip(mine, theirs, strict=True):
            assert one.logprobs == pytest.approx(two.logprobs, abs=1e-3) and one.greedy == two.greedy
            assert (one.live_rows, one.active_experts) == (two.live_rows, two.active_experts)
            assert (one.changed, one.prompt_tokens) == (two.changed, two.prompt_tokens)


def test_continuous_lanes_in_vllm(backend):
    from lynx_exp.engine import BatchPlan

    requests, plan = asked(backend), BatchPlan.continuous(16, 4, seed=2, waves=2)
    for policy in (None, POLICIES["lynx_v1_latency"]):
        lanes = list(backend.run_lanes(requests, plan, policy))
        assert sorted(number for lane in lanes for number in lane.requests) == list(range(16))
        assert {max(lane.live_rows) for lane in lanes} == {4}


def test_latency_of_a_lane_alone(backend):
    prompts = [request.prompt_ids for request in asked(backend, 4)]
    two = build_policy("lynx_v1_latency", keep_experts=2)
    timing = backend.measure(prompts, batch_size=4, policies={"two": two}, new_tokens=6, repeats=2)
    assert timing.active_experts["two"] == 2 < timing.active_experts["vanilla"]
    assert [len(steps) for steps in timing.step_ms["two"]] == [6, 6]
    assert timing.serving["two"]["e2e_mean_ms"] > timing.serving["two"]["ttft_mean_ms"] > 0


def test_prompts_shared_by_prefix_caching_change_no_token():
    """Prompts longer than vLLM's blocks, decoded by three policies; the second and third find their prompts cached."""
    from lynx_exp.engine import BatchPlan, Request
    from lynx_exp.vllm_backend import VllmEngine, open_llm

    found = []
    for caching in (False, True):
        engine = VllmEngine(
            open_llm("lynx_tiny", dtype="float32", device="cpu", max_rows=8, memory_gib=0.5, prefix_caching=caching)
        )
        text = " ".join(f"Ann has {n} pens and Tom has {n + 1} more." for n in range(14))
        ids = engine.tokenizer(text).input_ids
        requests = [Request(prompt_ids=tuple(ids[n : n + 180]), max_new_tokens=6, ignore_eos=True) for n in range(4)]
        plan = BatchPlan.in_order(4, 4)
        jobs = [engine.job(requests, plan, policy) for policy in (None, POLICIES["lynx"], POLICIES["lynx_v1_latency"])]
        jobs.append(engine.job(requests, plan, POLICIES["lynx"], "both"))
        found.append({job: lane.token_ids for job, lane in engine.run_jobs(jobs)})
        engine.close()
    assert found[0] == found[1]


def test_cells_from_the_command_line(tmp_path, capsys):
    """The same table from both backends, in a process of its own: first with vLLM, again (nothing is run), and with
    transformers."""
    grid = ["-m", "model=lynx_tiny", "task=mini_gsm8k,mini_wmt16", "policy=vanilla,lynx", "batch_size=4,16", "limit=16"]
    program = str(Path(sys.executable).parent / "lynx-exp")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*more: str) -> str:
        done = subprocess.run(
            [program, *grid, *more], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    assert "8 cells: 8 done, 0 skipped, 0 failed" in run("backend=vllm", "study_name=vllm", "then=[table,figures]")
    assert "0 done, 8 skipped" in run("backend=vllm", "study_name=vllm")
    run("study_name=transformers")
    from lynx_exp.store.read import read_cells

    one, two = (read_cells(tmp_path / "results" / name) for name in ("vllm", "transformers"))
    assert {cell.info["backend"] for cell in one} == {"vllm"}
    assert list((tmp_path / "results" / "vllm").rglob("*.png")), "figures are drawn"
    tokens = []
    for cells in (one, two):
        said = {}
        for cell in cells:
            point = (cell.info["task"], cell.info["policy"], cell.info["batch_size"])
            rows = pq.read_table(cell.path / "responses.parquet").to_pylist()
            said |= {(*point, row["request"]): row["response"] for row in rows if not row["filler"]}
        tokens.append(said)
    same = sum(tokens[0][key] == tokens[1][key] for key in tokens[1])
    assert len(tokens[0]) == len(tokens[1]) == 8 * 16
    with capsys.disabled():
        print(f"\nresponses equal in both backends: {same} of {len(tokens[1])}")
    assert same >= 0.95 * len(tokens[1])
