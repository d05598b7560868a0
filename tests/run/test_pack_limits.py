"""Which cells make a pack, and what does not fit: prompts, policies without a decode step, memory."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from lynx_exp.config import Config, MeasureConfig, ModelConfig, PackConfig, TaskConfig, VllmConfig
from lynx_exp.engine.decoding.stream import Stream
from lynx_exp.run.encode import encode_requests
from lynx_exp.run.interrupt import Interrupted
from lynx_exp.run.outcomes import Report
from lynx_exp.run.packs import SHARED, pack_groups
from lynx_exp.run.prepare_cells import prepare_cells
from lynx_exp.store.read import read_cell, read_cells
from tests.run.lab import GRID, SMALL, cell, found, states


@pytest.fixture
def groups(bench: Any) -> Callable[[Sequence[Config]], list[list[int]]]:
    """`groups(configs)`: packs, as numbers of the configs."""

    def make(configs: Sequence[Config]) -> list[list[int]]:
        cells = prepare_cells(configs, bench.load)
        return [[cells.index(cell) for cell in group] for group in pack_groups(cells)]

    return make


TOGETHER = {
    "policy": {"name": "lynx"},
    "phases": "both",
    "layers": "1:",
    "fidelity": True,
    "tokens": True,
    "measure": MeasureConfig(latency=True),
    "batch_size": 5,
}
APART = {
    "model": ModelConfig(kind="random", id="mixtral", config=dict(SMALL), seed=1),
    "task": TaskConfig(name="task", subtasks=["gen", "choice"]),
    "batching": "continuous",
    "waves": 2,
    "tail": "drain",
    "choices": "together",
    "plan_seed": 7,
    "limit": 3,
    "seed": 1,
    "dtype": "bfloat16",
    "device": "auto",
    "kernel": "torch",
    "steps": "eager",
    "threads": 1,
    "scoring": "prefill",
    "truncate": "left",
    "vllm": VllmConfig(max_num_batched_tokens=99),
}
BESIDE = {
    *("backend", "sandbox", "confirm_unsafe_code", "pack", "tracker", "results", "study_name", "first", "then"),
    *("plan", "hardware", "plan_seeds", "max_failures", "ignore_oom"),
}
"""Of one value only, or without a say in what an engine does; `pack` has a test of its own."""


def test_every_field_is_decided():
    assert set(SHARED) == {*APART, "backend", "pack"}
    assert {f.name for f in fields(Config)} == set(TOGETHER) | set(APART) | BESIDE


@pytest.mark.parametrize("name", TOGETHER)
def test_what_may_differ_in_a_pack(groups, config, name):
    one = config({"name": "oea"})
    assert groups([one, replace(one, **{name: TOGETHER[name]})]) == [[0, 1]]


@pytest.mark.parametrize("name", APART)
def test_what_may_not(groups, config, name):
    one = config({"name": "oea"})
    other = replace(one, **{name: APART[name]})
    assert asdict(one)[name] != asdict(other)[name]
    assert groups([one, other]) == [[0], [1]]


def test_packs_are_cut_and_keep_the_order(groups, config):
    grid = [config(seed=seed, batch_size=size) for size in (1, 2, 3) for seed in (1, 0)]
    assert groups(grid) == [[0, 2, 4], [1, 3, 5]]
    cut = [replace(one, pack=PackConfig(max_cells=2)) for one in grid]
    assert groups(cut) == [[0, 2], [4], [1, 3], [5]]
    assert groups([*grid[:2], *cut[2:4]]) == [[0], [1], [2], [3]], "packs of another shape"
    assert groups([]) == []


def test_a_prompt_that_does_not_fit_is_refused_by_name(bench, config):
    bench.engine.context_length = 13
    report = bench.run([config(), config({"name": "lynx"}), config(seed=1)])
    line = (
        "ValueError: gen: request 0: a prompt of 11 tokens and 3 more do not fit the model's 13 positions; "
        "truncate=left cuts such prompts at their beginning"
    )
    assert states(report) == [("failed", line)] * 3 and not bench.engine.ran
    assert bench.text().count(line) == 3
    bench.engine.context_length = 14
    assert bench.run([config()]).failed == 0


def test_prompts_are_cut_at_their_beginning(bench, config):
    bench.engine.context_length = 13
    report = bench.run([config(subtasks=("gen", "choice"), truncate="left")])
    rows = read_cell(report.outcomes[0].folder).responses().to_pylist()
    assert {row["prompt_tokens"] for row in rows if row["subtask"] == "gen"} == {13 - 3}
    assert {row["prompt_tokens"] for row in rows if row["subtask"] == "choice"} == {14 - len(" choice 0")}
    for name, kept in (("gen", "question 3"), ("choice", "ion 1")):
        cut = encode_requests(bench.load(name), bench.engine, "left")[3]
        assert bytes(cut.prompt_ids).decode() == kept


@pytest.mark.parametrize("context", [2, 3])
def test_a_prompt_that_cannot_be_cut_is_refused_all_the_same(bench, config, context):
    bench.engine.context_length = context
    ((state, error),) = states(bench.run([config(truncate="left")]))
    assert state == "failed" and error is not None
    assert f"gen: request 0: a prompt of 11 tokens and 3 more do not fit the model's {context} positions" in error
    assert "truncate=left" not in error, "which it was"


def test_a_real_model_runs_prompts_cut_to_its_context(lab):
    refused, cut = lab.folder(), lab.folder()
    ((state, error),) = states(lab.run([cell(subtasks=("wide",))], refused))
    assert state == "failed" and error is not None and "fit the model's 64 positions" in error
    assert lab.run([cell(subtasks=("wide",), truncate="left")], cut).failed == 0
    assert {row["prompt_tokens"] for row in read_cells(cut)[0].responses().to_pylist()} == {64 - 12}


def test_prefill_scoring_shows_what_acts_in_prefill_alone(lab):
    folder = lab.folder()
    policy = {"name": "lynx_v1_latency", "keep_experts": 2}
    points = [{}, {"policy": policy}, {"policy": policy, "phases": "both"}, {"policy": policy, "phases": "prefill"}]
    prefill = [cell(point, ("choice",), scoring="prefill") for point in points]
    cells = [read_cell(o.folder.parent / o.folder.name) for o in _absolute(lab.run(prefill, folder), folder)]
    logprobs = [cell.responses()["logprob"].to_pylist() for cell in cells]
    assert logprobs[0] == logprobs[1] and logprobs[0] != logprobs[2] == logprobs[3]
    assert [cell.steps().num_rows for cell in cells] == [0] * 4
    assert all(cell.metrics["active_experts"] is None for cell in cells)
    note = (
        "task lynx_v1_latency(keep_experts=2) batch 3: scoring=prefill has no decode step, and with phases=decode the "
        "policy never acts: its choice is vanilla's; use scoring=decode or phases=both\n"
    )
    assert lab.text().count("scoring=prefill") == lab.text().count(note) == 1

    decode = [cell(point, ("choice",)) for point in points[:2]]
    cells = [read_cell(o.folder) for o in _absolute(lab.run(decode, folder), folder)]
    decoded = [cell.responses()["logprob"].to_pylist() for cell in cells]
    assert decoded[0] == pytest.approx(logprobs[0], rel=1e-4) and decoded[1] != decoded[0]
    assert all(cell.steps().num_rows for cell in cells)
    assert lab.text().count("scoring=prefill") == 1


def test_the_engine_is_asked_for_the_scoring_of_the_config(bench, config):
    bench.run([config(subtasks=("gen", "choice")), config(subtasks=("choice",), scoring="prefill")])
    assert bench.engine.scored == ["decode", "prefill"]
    assert "never acts" not in bench.text(), "vanilla has nothing to miss"


def _absolute(report: Report, folder: Path) -> list[Any]:
    return [replace(outcome, folder=folder / outcome.folder) for outcome in report.outcomes]


def out_of_memory(monkeypatch: pytest.MonkeyPatch, when: Callable[[Stream, int], bool]) -> None:
    """Plant it in those steps for which `when(stream, number of the step)`."""
    step, count = Stream._step, iter(range(10**6))

    def failing(self: Stream) -> None:
        if when(self, next(count)):
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    monkeypatch.setattr(Stream, "_step", failing)


def test_running_out_of_memory_is_noted_in_every_cell_of_the_pack(lab, whole, monkeypatch):
    folder = lab.folder()
    configs = [*GRID, cell(seed=5)]
    out_of_memory(monkeypatch, lambda _, number: number == 3)
    assert lab.run(configs, folder).failed == 0
    noted = {cell.path.name: cell.status["notes"] for cell in read_cells(folder)}
    first = next(notes for name, notes in noted.items() if name in whole)
    assert {name: notes for name, notes in noted.items() if name in whole} == dict.fromkeys(whole, first)
    assert [notes for name, notes in noted.items() if name not in whole] == [[]], "of another pack"
    (line,) = first
    assert re.fullmatch(r"out of memory; going on with \d+ rows at a time", line) and lab.text().count(line) == 1
    assert {name: files for name, files in found(folder).items() if name in whole} == whole


def test_a_lane_too_wide_for_the_memory_fails_alone(lab, monkeypatch):
    folder = lab.folder()
    sizes = (3, 8, 2)
    out_of_memory(monkeypatch, lambda stream, _: len(stream._rows) > 4)
    report = lab.run([cell(batch_size=size, pack=PackConfig(max_rows=8), limit=9) for size in sizes], folder)
    assert [outcome.state for outcome in report.outcomes] == ["done", "failed", "done"]
    error = "out of memory with 8 rows; a lane of batch_size=8 cannot be made smaller"
    assert report.outcomes[1].error == f"OutOfMemory: {error}"
    assert f"pack of 3 cells: {error}; running them one by one" in lab.text()
    notes = {cell.info["batch_size"]: cell.status["notes"] for cell in read_cells(folder)}
    assert notes[8] == [] and len(notes[3]) == len(notes[2]) == 1
    assert notes[3][0] in lab.text() and "out of memory; going on with " in notes[3][0]


def test_notes_are_kept_by_a_cell_that_fails_or_is_interrupted(bench, config):
    bench.engine.notes = ["out of memory; going on with 2 rows at a time"]
    bench.engine.fail = lambda run: KeyboardInterrupt() if run == 1 else None
    with pytest.raises(Interrupted):
        bench.run([config(), config({"name": "lynx"})])
    assert [cell.status["notes"] for cell in read_cells(config().results)] == [bench.engine.notes] * 2
    assert bench.text().count(bench.engine.notes[0]) == 1


def test_no_cell_is_left_behind(lab):
    """The table of a study whose cells ran in packs, as its reader sees it."""
    folder = lab.folder()
    lab.run(GRID, folder)
    for record in read_cells(folder):
        assert record.done and record.status["notes"] == []
        assert sorted(os.listdir(record.path)) == sorted(
            ["DONE", *json.loads((record.path / "DONE").read_text())["files"]]
        )
        rows = pq.read_table(record.path / "responses.parquet", columns=["subtask", "filler"]).to_pylist()
        assert Counter(row["subtask"] for row in rows if not row["filler"]) == {"short": 7, "choice": 17}
