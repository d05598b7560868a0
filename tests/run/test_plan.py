"""`plan=true`: what would be run, what it would take, and nothing run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lynx_exp.config import ModelConfig
from lynx_exp.run.cost_estimate import memory_of
from lynx_exp.store.claims import Claims
from lynx_exp.store.files import read_json, write_json
from tests.run.fakes import TINY

LYNX = {"name": "lynx", "alpha": 1.0, "beta": 1, "min_batch": 2}


@pytest.fixture
def planned(bench, config):
    """What `plan` prints for the cells of `configs`."""

    def plan(*configs, packed=True) -> str:
        before = len(bench.text())
        report = bench.run([replace(one, plan=True) for one in configs], packed=packed)
        assert {outcome.state for outcome in report.outcomes} == {"planned"} and report.failed == 0
        return bench.text()[before:]

    return plan


def test_a_fresh_sweep(planned, bench, config, tmp_path):
    text = planned(config(), config(LYNX), config(LYNX, batching="continuous"))
    assert "3 cells: 0 done, 3 to run, 0 left alone" in text
    assert re.search(
        r"pack 1/2: mixtral \(random [0-9a-f]{6}\), task: 2 cells, 10 requests\n  task vanilla batch 2, 5 ", text
    )
    assert "time: unknown; no cell of these models has been run here" in text
    assert "nothing was run (plan=true)" in text
    assert bench.engine.opened == 0 and not (tmp_path / "results").exists()


def test_one_by_one(planned, config):
    assert "pack 2/2" in planned(config(), config(LYNX), packed=False)


def test_what_is_there_already(planned, bench, config):
    bench.run([config()])
    bench.engine.fail = lambda run: KeyboardInterrupt() if run == 5 else None
    with pytest.raises(KeyboardInterrupt):
        bench.run([config(LYNX)])
    text = planned(config(), config(LYNX), config(batch_size=3))
    assert "3 cells: 1 done, 2 to run, 0 left alone" in text
    assert "task lynx(alpha=1, beta=1) batch 2, 5 requests, continues after 2 lanes" in text
    assert "time: about 0:0" in text and "by what 1 finished cell took\n" in text


def test_times_follow_the_most_alike_cells(planned, bench, config):
    for size, seconds in ((2, 50.0), (3, 1000.0)):
        (outcome,) = bench.run([config(batch_size=size)]).outcomes
        status = read_json(outcome.folder / "status.json")
        write_json(outcome.folder / "status.json", status | {"seconds": seconds})
    assert "about 0:50" in planned(config(LYNX))
    assert "about 16:40" in planned(config(LYNX, batch_size=3))
    assert "about 8:45" in planned(config(batch_size=4)), "the mean of what is known of the task"
    assert "time: unknown" in planned(config(model=ModelConfig(kind="random", id="olmoe")))


def test_a_time_from_a_far_smaller_run_says_so(planned, bench, config):
    bench.run([config(limit=2)])
    assert "by what 1 finished cell took\n" in planned(config(LYNX, limit=20))
    assert "took; likely less: 15 times as many requests as those had\n" in planned(config(LYNX, limit=30))


def test_a_policy_without_vanilla_is_told_how_to_get_it(bench, config):
    def said(*configs) -> str:
        before = len(bench.text())
        bench.run(list(configs))
        return bench.text()[before:]

    assert "next: 2 of them without vanilla on their plan" in said(config(LYNX), config(LYNX, batch_size=3))
    assert "next: 1 of them without vanilla on their plan" in said(
        config(), config(LYNX), config(LYNX, batch_size=3)
    ), "of its own batch size"
    assert "without vanilla" not in said(config(LYNX)), "an earlier run's will do"


def test_random_weights_say_so_and_which_they_are(planned, config):
    other = ModelConfig(kind="random", id="mixtral", config=dict(TINY), seed=1)
    names = re.findall(r"pack ./2: (mixtral \(random [0-9a-f]{6}\)), task", planned(config(), config(model=other)))
    assert len(set(names)) == 2


def test_what_is_not_run(planned, bench, config):
    bench.engine.fail = lambda run: MemoryError("no room")
    bench.run([config(batch_size=3)])
    assert "0 done, 1 to run, 1 left alone" in planned(config(batch_size=2), config(batch_size=4))
    assert "  task vanilla batch 4: not run: batch size 3 of the same cell ran out of memory (no room); " in planned(
        config(batch_size=4)
    )
    assert "nothing to run" in planned(config(batch_size=4))


def test_who_is_at_it(planned, bench, config, tmp_path):
    bench.run([config()])
    folder = next((tmp_path / "results").rglob("DONE")).parent
    (folder / "DONE").unlink()
    claims = Claims()
    claims.take(folder)
    assert "task vanilla batch 2: process" in planned(config())
    claims.close()


def test_memory(planned, config, bench, monkeypatch):
    monkeypatch.setattr("lynx_exp.engine.kv_cache.memory.available_memory", lambda: 2**34)
    text = planned(config())
    assert ") in float32: weights 5.57 GiB" in text and "cpu has 16.0 GiB: fits, " in text
    monkeypatch.setattr("lynx_exp.engine.kv_cache.memory.available_memory", lambda: 2**20)
    assert "DOES NOT FIT: room for 0 rows, batch_size=2" in planned(config())


def test_memory_is_the_models_own(bench, config):
    from lynx_exp.run.prepare_cells import prepare_cells

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    model = ModelConfig(kind="random", id="mixtral", config=dict(TINY) | sizes)
    (cell,) = prepare_cells([config(model=model)], bench.load)
    memory = memory_of(cell, positions=10)
    assert memory is not None
    layers, experts, vocabulary = 2, 4, 300
    attention = 64 * 64 * 2 + 64 * 32 * 2
    of_layer = attention + experts * 3 * 64 * 96 + 64 * experts + 2 * 64
    assert memory.weights * 2**30 == 4 * (layers * of_layer + 2 * vocabulary * 64 + 64)
    assert memory.keys_and_values * 2**30 == pytest.approx(10 * 4 * layers * 2 * 2 * 16)


def test_weights_that_are_not_here(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from lynx_exp.run.dry_run import _missing

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    cell = SimpleNamespace(
        config=SimpleNamespace(model=ModelConfig(kind="hub", id="some/Model-8x7B")),
        model=SimpleNamespace(declared=False),
    )
    assert "to download: the weights of some/Model-8x7B, which are not in the hub's cache" in next(_missing(cell))  # type: ignore[arg-type]
    folder = SimpleNamespace(config=SimpleNamespace(model=ModelConfig(kind="hub", id=str(Path(tmp_path)))))
    assert list(_missing(folder)) == []  # type: ignore[arg-type]


def test_what_must_be_measured_first_is_named_and_the_rest_planned(bench, config, tmp_path):
    lost = tmp_path / "lost.st"
    sere = {"name": "sere", "calibration": str(lost)}
    bench.run([config(plan=True), config(sere, plan=True), config(LYNX, plan=True)])
    text = bench.text()
    assert "3 cells: 0 done, 3 to run" in text
    assert f"to measure before 1 cell can run: policy sere: calibration={lost}: no such file; `lynx-prepare" in text
    with pytest.raises(ValueError, match="^policy sere: calibration="):
        bench.run([config(sere)])
