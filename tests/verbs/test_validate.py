"""`lynx-results validate`: a whole study has no finding, each single corruption the ones that are meant for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_exp.checks.all_rules import Validation
from lynx_exp.checks.findings import RULES
from lynx_exp.checks.lane_rules import live_rows, seats
from lynx_exp.checks.number_rules import _means
from lynx_exp.config import TaskConfig
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.forced_plan import ForcedPlan
from lynx_exp.run.metrics import batch_summary
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.cell_writer import record_failure
from lynx_exp.store.claims import Claims
from lynx_exp.store.done import check_sealed, read_done
from lynx_exp.store.files import read_json
from lynx_exp.store.reading import Damaged, read_bytes
from tests.run.real_cells import bundled
from tests.verbs.corruptions import CORRUPTIONS, Corruption, at, first
from tests.verbs.study import VANILLA, cell_of, edit, results


def rules(root: Path) -> set[str]:
    return {finding.rule for finding in Validation(root=root).run()}


def test_a_whole_study_has_no_finding(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results("validate", ran) == 0
    out, err = capsys.readouterr()
    assert out == (
        "6 of 6 cells finished and checked: 0 errors, 0 warnings; not derived again: chrf, ter (--rescore does it)\n"
    )
    assert err == ""


def test_scored_anew_it_still_has_none(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in ran.rglob("*") if path.is_file()}
    assert results("validate", "--rescore", "--strict", ran) == 0
    assert capsys.readouterr().out == "6 of 6 cells finished and checked: 0 errors, 0 warnings\n"
    assert {path: path.read_bytes() for path in ran.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)
def test_each_corruption_is_found_by_its_rule(corruption: Corruption, study: Path) -> None:
    corruption.do(study)
    found = list(Validation(root=study).run())
    assert {finding.rule for finding in found} == set(corruption.rules), "\n".join(map(str, found))
    meant = next(finding for finding in found if finding.rule == corruption.rules[0])
    line = str(meant)
    assert "\n" not in line and line.startswith(f"{meant.severity}: {meant.rule}: {study}")
    assert meant.expected and meant.found and meant.expected != meant.found


def test_every_rule_is_broken_by_some_corruption() -> None:
    assert len(CORRUPTIONS) >= 25 and len({str(corruption) for corruption in CORRUPTIONS}) == len(CORRUPTIONS)
    assert {corruption.rules[0] for corruption in CORRUPTIONS} == set(RULES) - {"guard", "rescore"}, "below"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_found(data: st.DataObject, ran: Path, tmp_path: Path) -> None:
    """In any file of a finished cell, by any amount."""
    cell = cell_of(ran)
    name = data.draw(st.sampled_from(sorted(path.name for path in cell.iterdir())))
    content = bytearray((cell / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    copy = tmp_path / cell.name
    if not copy.exists():
        shutil.copytree(cell, copy)
    (copy / name).write_bytes(content)
    try:
        found = list(Validation(root=copy).run())
    finally:
        shutil.copy(cell / name, copy / name)
    assert any(finding.severity == "error" for finding in found)


@pytest.mark.parametrize("change", ["time", "size", "name", "hash", "key"])
def test_sizes_and_times_of_done_are_checked_too(change: str, ran: Path, tmp_path: Path) -> None:
    """They only save hashing: damaged ones are not believed, and harm no file."""
    copy = tmp_path / cell_of(ran).name
    shutil.copytree(cell_of(ran), copy)
    text = (copy / "DONE").read_text()
    done = json.loads(text)
    size, time = done["seen"]["metrics.json"]
    old, new = {
        "time": (f"{time}", f"{time ^ 1}"),
        "size": (f"{size},", f"{size + 1},"),
        "name": ('"seen": {\n  "cell', '"seen": {\n  "bell'),
        "hash": (done["seen_sha256"], done["seen_sha256"][::-1]),
        "key": ("seen_sha256", "seen_sha257"),
    }[change]
    before = (copy / "metrics.json").stat().st_mtime_ns
    assert old in text
    (copy / "DONE").write_text(text.replace(old, new))
    found = [finding for finding in Validation(root=copy).run() if finding.severity == "error"]
    assert {finding.rule for finding in found} - {"partner"} == {"hash"}
    check_sealed(copy, read_done(copy))
    assert (copy / "metrics.json").stat().st_mtime_ns == before


def test_answers_scored_anew(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What agrees with itself on disk and is wrong all the same."""
    cell = cell_of(study, "mix", "vanilla")
    edit(cell, "samples", first("mini_gsm8k", filtered="17"))
    assert rules(study) == set()
    assert results("validate", "--rescore", study) == 1
    out = capsys.readouterr().out
    assert out.startswith(
        f"error: rescore: {cell}: metrics.json: expected what scoring the responses anew gives; found"
    )
    assert out.count("\n") == 2
    edit(cell, "metrics.json", at("metrics", 2, "value", value=1.0))
    assert results("validate", "--rescore", "--json", cell) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert "rescore" in {finding["rule"] for finding in found}


def test_responses_that_run_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = TaskConfig(name="mini_gsm8k", subtasks=["mini_gsm8k"])
    broken = {"name": "random_keep", "keep_experts": 2, "seed": 0}
    cells = [
        bundled(tmp_path, task=task, batch_size=3, limit=6, batching="static", policy=policy)
        for policy in (VANILLA, broken)
    ]
    assert run_cells(cells).failed == 0
    capsys.readouterr()
    assert results("validate", tmp_path) == 0, "a warning: that may be the policy's fault, and true"
    line, closing = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: guard: ") and "random_keep" in line and "found longer: 26.7 tokens" in line
    assert closing.endswith("0 errors, 1 warning")
    assert results("validate", "--strict", tmp_path) == 1
    assert results("validate", "--strict", "--ignore", "guard", tmp_path) == 0


def test_json(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = cell_of(study)
    edit(cell, "metrics.json", at("active_experts", value=4.0))
    assert results("validate", "--json", study) == 1
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("cells", "finished", "errors", "warnings")} == {
        **{"cells": 6, "finished": 6, "errors": 1, "warnings": 0}
    }
    (finding,) = found["findings"]
    assert finding["rule"] == "numbers" and finding["where"] == str(cell) and finding["found"] == "4.0"


def test_help_lists_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert results("validate", "--help") == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and rule.statement in out for name, rule in RULES.items())


def test_a_cell_alone_and_what_is_none(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results("validate", cell_of(study)) == 0, "its partner is not looked for"
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    for folder, text in ((tmp_path / "empty", "holds no cell"), (tmp_path / "nowhere", "not a folder")):
        assert results("validate", folder) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("lynx-results: error: ") and text in err and err.count("\n") == 1
    assert results("validate", study, "--ignore", "taste") == 2


def test_a_cell_that_could_not_begin(study: Path) -> None:
    cell = cell_of(study)
    info, config = read_json(cell / "cell.json"), (cell / "config.yaml").read_text()
    shutil.rmtree(cell)
    claims = Claims()
    assert claims.take(cell)
    error = {"kind": "load", "class": "OSError", "message": "no weights\nat all"}
    record_failure(claims.hold(cell), info, config, error)
    claims.close()
    (finding,) = Validation(root=study).run()
    assert str(finding) == f"error: state: {cell}: DONE: expected a finished cell; found failed: load: no weights"


def test_files_that_go_while_they_are_read(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell_of(study) / ".plan.json.x.tmp").write_text("")
    closed = cell_of(study) / "steps.parquet"

    def read(path: Path) -> bytes:
        if path.name.endswith(".tmp"):
            path.unlink()
        if path == closed:
            raise Damaged(path, "cannot be read (Permission denied)")
        return read_bytes(path)

    monkeypatch.setattr("lynx_exp.checks.folder_content.read_bytes", read)
    found = list(Validation(root=study).run())
    assert {finding.rule for finding in found} == {"readable"} and "Permission denied" in str(found[0])


def test_what_the_docs_say() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs/howto/results-on-disk.md").read_text().split())
    assert f"one of {len(RULES)} rules" in text and f"each of {len(CORRUPTIONS)} single corruptions" in text


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=20)


@given(lengths, st.integers(1, 6) | st.none())
def test_who_decodes_when(tokens: list[int], slots: int | None) -> None:
    """As the engine's own plan of given continuations, which is written otherwise."""
    requests = [Request(prompt_ids=(1,), continuation_ids=(1,) * length) for length in tokens]
    plan = ForcedPlan.of(requests, BatchPlan((tuple(range(len(tokens))),), slots=slots), [0])
    assert seats(tokens, slots) == list(zip(plan.starts, plan.slots, strict=True))
    assert [rows.tolist() for rows in live_rows(tokens, slots)] == [plan.live_rows(0)] * 2


@given(lengths, lengths, st.integers(1, 6))
def test_who_decodes_when_beside_fillers(tokens: list[int], more: list[int], slots: int) -> None:
    requests = [Request(prompt_ids=(1,), continuation_ids=(1,) * length) for length in [*tokens, *more]]
    own = tuple(range(len(tokens)))
    fillers = (tuple(range(len(tokens), len(requests))),)
    plan = ForcedPlan.of(requests, BatchPlan((own,), slots=slots, fillers=fillers), [0])
    entered = plan.lengths[len(tokens) :]
    if len(tokens) + len(more) >= slots:
        assert seats(tokens, slots, entered) == list(zip(plan.starts, plan.slots, strict=True))
    live, scored = live_rows(tokens, slots, entered)
    assert (live.tolist(), scored.tolist()) == (plan.live_rows(0), plan.live_rows(0, fillers=False))
    assert len(entered) == len(more) or not live.size or min(live) == slots, "full while others wait"


rows_of_steps = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 3), st.integers(0, 1), st.integers(1, 3)),
    max_size=30, unique_by=lambda row: row[:4],
)  # fmt: skip
rows_of_responses = st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["eos", "length", "scored"])), max_size=9)


@given(rows_of_steps, rows_of_responses)
def test_means_are_those_of_the_launcher(steps: list, responses: list) -> None:
    live = {(stream, lane, step): rows for stream, lane, step, _, rows in steps}
    names = ("subtask", "lane", "step", "layer", "live_rows", "scored_rows", "active_experts")
    made = [
        dict(zip(names, (*row[:4], live[row[:3]], max(1, live[row[:3]] - row[2] % 2), 1 + row[4]), strict=True))
        for row in steps
    ]
    given_ = [{"new_tokens": tokens, "finish_reason": reason} for tokens, reason in responses]
    columns = {name: np.array([row[name] for row in made], object if name == "subtask" else int) for name in names}
    asked = {
        "new_tokens": np.array([row["new_tokens"] for row in given_], int),
        "finish_reason": np.array([row["finish_reason"] for row in given_], object),
    }
    everything = np.ones(len(given_), bool), np.ones(len(made), bool)
    expected = batch_summary(given_, made, 2)
    assert _means(asked, columns, *everything, 2) == {name: pytest.approx(v) for name, v in expected.items()}
