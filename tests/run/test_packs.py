"""Cells in packs: a small random Mixtral decodes them side by side, to the bytes of each cell alone; faults are planted
in it, or in a fake engine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lynx_exp.config import PackConfig
from lynx_exp.routing.policies.random_keep import RandomKeep
from lynx_exp.run.interrupt import Interrupted
from lynx_exp.store.cell_writer import CellWriter
from lynx_exp.store.read import read_cell, read_cells
from lynx_exp.store.tables import LaneRecord
from tests.run.lab import GRID, POINTS, Lab, cell, found, states, statuses

SWEEPS = st.fixed_dictionaries(
    {
        "cells": st.lists(st.tuples(st.sampled_from(POINTS), st.sampled_from([1, 3, 7])), min_size=2, max_size=5),
        "subtasks": st.sampled_from([("short", "long", "choice"), ("long",), ("choice", "short")]),
        "batching": st.sampled_from(["static", "continuous"]),
        "waves": st.integers(1, 2),
        "scoring": st.sampled_from(["decode", "prefill"]),
        "fidelity": st.booleans(),
        "seed": st.integers(0, 3),
        "pack": st.builds(PackConfig, max_rows=st.sampled_from([4, 11, 256]), max_cells=st.sampled_from([3, 48])),
    }
)
WHOLE = {
    "cells": [(point, batch_size) for point in POINTS[:5] for batch_size in (1, 3, 7)],
    "subtasks": ("short", "long", "choice"),
    "pack": PackConfig(max_rows=19),
}


@settings(max_examples=5, deadline=None)
@example(sweep=WHOLE | {"batching": "static"})
@example(
    sweep={**WHOLE, "batching": "continuous", "waves": 2, "cells": [(POINTS[n], b) for n in (0, 1, 3) for b in (1, 3)]}
)
@example(sweep={"cells": [(POINTS[n], 3) for n in (1, 2, 3, 4)], "subtasks": ("long", "choice"), "fidelity": True})
@given(sweep=SWEEPS)
def test_a_packed_cell_has_the_bytes_of_the_cell_alone(model, tmp_path_factory, sweep):
    lab = Lab(model=model, root=tmp_path_factory.mktemp("sweep"))
    shared = {key: value for key, value in sweep.items() if key not in ("cells", "subtasks")}
    configs = [cell(point, sweep["subtasks"], batch_size=size, **shared) for point, size in sweep["cells"]]
    together, alone = lab.folder(), lab.folder()
    packed = lab.run(configs, together)
    jobs = max(map(len, lab.asked), default=0)
    unpacked = lab.run(configs, alone, packed=False)
    assert states(packed) == states(unpacked)
    assert found(together) == found(alone)
    of_choice_in_continuous = sweep.get("batching") == "continuous" and any(p.get("phases") for p, _ in sweep["cells"])
    if not of_choice_in_continuous:  # which is refused
        assert {state for state, _ in states(packed)} == {"done"}
    if sweep["cells"] == WHOLE["cells"]:
        assert jobs == len(configs) == len(found(together))
        texts = {cell.path.name: cell.responses()["response"].to_pylist() for cell in read_cells(together)}
        assert len({str(text) for text in texts.values()}) > len(configs) // 2, "policies and batch sizes matter"


def committing(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None] = lambda _: None) -> list[Any]:
    """What is committed from now on, (cell, subtask, lane); `before` is told how many were before each."""
    done: list[Any] = []
    commit = CellWriter.commit

    def watched(self: CellWriter, lane: LaneRecord) -> None:
        before(len(done))
        commit(self, lane)
        done.append((self.folder.name, lane.subtask, lane.lane))

    monkeypatch.setattr(CellWriter, "commit", watched)
    return done


def stop_at(count: int) -> Callable[[int], None]:
    def stop(committed: int) -> None:
        if committed == count:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("survived", [0, 1, 13, 34, 60])
def test_a_kill_costs_no_committed_lane(lab, whole, monkeypatch, survived):
    folder = lab.folder()
    with monkeypatch.context() as patch:
        before = committing(patch, stop_at(survived))
        told = r"0 of 10 cells done, \d+ of \d+ requests kept; run the same command to continue"
        with pytest.raises(Interrupted, match=told):
            lab.run(GRID, folder)
    assert len(before) == survived and statuses(folder) == ["interrupted"] * 10
    assert len(list(folder.rglob("lanes/*"))) == survived
    after = committing(monkeypatch)
    assert [state for state, _ in states(lab.run(GRID, folder))] == ["done"] * 10
    every = Counter(before + after)
    assert set(every.values()) == {1}, "no lane is run twice"
    decoded = sum(subtask == "short" for _, subtask, _ in after)
    assert sum(len(lanes) for jobs in lab.asked for lanes in jobs) == decoded
    assert found(folder) == whole
    assert len(every) == sum(
        len(lanes["lanes"]) for files in whole.values() for lanes in json.loads(files["plan.json"]).values()
    )


def test_a_kill_between_two_cells_marks_the_rest_as_interrupted(bench, config, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lynx_exp.run.run_cells.track", stop)  # where a tracker's upload would be cut short
    with pytest.raises(Interrupted, match="1 of 3 cells done"):
        bench.run([config(), config(POINTS[3]["policy"]), config(batch_size=3)])
    assert sorted(statuses(Path(config().results))) == ["done", "interrupted", "interrupted"]


def test_one_bad_policy_of_a_pack_fails_alone(lab, monkeypatch):
    keep = RandomKeep.keep

    def broken(self: RandomKeep, routing: Any, step: Any, rule: Any) -> Any:
        if (step.key >> 32 == 2).any():
            raise RuntimeError("no numbers left\nin the box")
        return keep(self, routing, step, rule)

    folder, sound = lab.folder(), lab.folder()
    configs = [replace(config, pack=PackConfig(max_rows=6)) for config in GRID[:-2]]  # those that prefill stay away
    assert lab.run(configs, sound).failed == 0
    whole = found(sound)
    with monkeypatch.context() as patch:
        patch.setattr(RandomKeep, "keep", broken)
        committed = committing(patch)
        report = lab.run(configs, folder)
    failed = {outcome.folder.name: outcome.error for outcome in report.outcomes if outcome.state == "failed"}
    assert len(failed) == 2 and all("random_keep" in name for name in failed)
    assert set(failed.values()) == {"RuntimeError: no numbers left\nin the box"}
    assert "pack of 8 cells: no numbers left; running them one by one\n" in lab.text()
    assert "8 cells: 6 done, 0 skipped, 2 failed" in lab.text()
    assert {name: files for name, files in found(folder).items() if name not in failed} == {
        name: files for name, files in whole.items() if name not in failed
    }
    for name in failed:
        record = read_cell(next(folder.rglob(name)))
        error = {"class": "RuntimeError", "message": "no numbers left\nin the box"}
        assert record.status["error"] == {"kind": "other", "where": None} | error
        assert "in broken" in (record.path / "error.txt").read_text()
        assert list((record.path / "lanes").iterdir()), "the lanes before the fault are kept"
    assert max(Counter(committed).values()) == 1, "the others go on from what the pack had done"
    assert [state for state, _ in states(lab.run(configs, folder))] == [
        "done" if "random_keep" in outcome.folder.name else "skipped" for outcome in report.outcomes
    ]
    assert found(folder) == whole


@pytest.mark.parametrize("max_rows", [3, 6, 23])
def test_the_size_of_the_physical_batch_is_cosmetic(lab, whole, max_rows):
    """As `store.identity` has it: a sweep that another machine goes on with has one and the same cell."""
    folder = lab.folder()
    lab.run([replace(config, pack=PackConfig(max_rows=max_rows)) for config in GRID], folder)
    for name, files in found(folder).items():
        for table in ("responses.parquet", "steps.parquet", "samples.parquet", "metrics.json", "plan.json"):
            assert files[table] == whole[name][table], (name, table)


def test_what_fails_once_in_company_is_done_alone(bench, config):
    errors = iter([RuntimeError("a bit flipped")])
    bench.engine.fail = lambda run: next(errors, None) if run == 3 else None
    report = bench.run([config(), config(POINTS[3]["policy"]), config(batch_size=3)])
    assert [outcome.state for outcome in report.outcomes] == ["done"] * 3
    assert "pack of 3 cells: a bit flipped; running them one by one" in bench.text()
    assert [len(pack) for pack in bench.engine.packs] == [3, 1, 1, 1] and len(bench.engine.ran) == 3 + 3 + 2
    assert "pack of 3: task: 8 lanes, " in bench.text()


def test_a_fault_in_the_comparison_costs_only_its_own_cell(bench, config, monkeypatch):
    bad = {"name": "random_keep", "keep_experts": 3}
    fidelity_of = bench.engine.fidelity_of

    def broken(requests: Any, plan: Any, acts: Any, tokens: Any) -> Any:
        for number, act in enumerate(acts):
            if act.policy.name == "random_keep":
                raise RuntimeError("not a number")
            yield from (replace(each, act=number) for each in fidelity_of(requests, plan, [act]))

    monkeypatch.setattr(bench.engine, "fidelity_of", broken)
    report = bench.run([config(policy, fidelity=True) for policy in (POINTS[1]["policy"], bad, {"name": "no_drop"})])
    assert [outcome.state for outcome in report.outcomes] == ["done", "failed", "done"]
    rows = [read_cell(report.outcomes[at].folder).fidelity().num_rows for at in (0, 2)]
    assert rows == [5, 5], "what was compared before the fault is not there twice"
