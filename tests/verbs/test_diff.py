"""`lynx-results diff`: which cells are compared, and what of them is said to differ."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import statistics
from analysis.between import compare_cells
from lynx_exp.results.diff import _excerpts
from lynx_exp.results.matching import match
from lynx_exp.store.files import write_json, write_text
from lynx_exp.store.identity import SCHEMA, USES
from lynx_exp.store.question import HOW, means, question, read_config_yaml
from lynx_exp.store.read import CellRecord, read_cell, read_cells
from tests.verbs.corruptions import at, first, in_both
from tests.verbs.study import cell_of, edit, results

UNCHANGED = "time a token: 1 times before, geometric mean of 2 pairs\n"


@pytest.fixture
def other(study: Path, tmp_path: Path) -> Path:
    """A second copy."""
    shutil.copytree(study, tmp_path / "other")
    return tmp_path / "other"


def test_a_sweep_is_equal_to_itself(study: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results("diff", study, other) == 0
    assert capsys.readouterr().out == "6 pairs: 6 equal in science, 0 not\n" + UNCHANGED


def test_code_and_machine_are_said_first_and_change_nothing(
    study: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in read_cells(other):
        edit(record.path, "provenance.json", at("code_sha256", value="f" * 64))
        edit(record.path, "cell.json", at("cell_id", value="0" * 54 + record.path.name[-10:]))
        if record.info["task"] == "mix":
            edit(record.path, "provenance.json", at("numerics", "packages.torch", value="2.99"))
    assert results("diff", study, other) == 0
    *said, closing, _ = capsys.readouterr().out.splitlines()
    assert said[0].startswith("code: ") and said[0].endswith(" -> ffffffffffff")
    assert said[1].startswith("packages.torch: ") and said[1].endswith(" -> 2.99 (in 1 of 6 pairs)") and len(said) == 2
    assert closing == "6 pairs: 6 equal in science, 0 not"


def test_slower_is_no_other_science(study: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = cell_of(other)
    edit(cell, "timing", lambda rows: [row | {"ms": 4 * row["ms"]} for row in rows])
    old, new = (
        compare_cells(read_cell(cell_of(study)), read_cell(folder)).step_ms[1] for folder in (cell_of(study), cell)
    )
    assert old is not None and new is not None and new.value == pytest.approx(4 * old.value)
    edit(cell, "timing", lambda rows: [row | {"ms": 9.0} for row in rows])
    edit(cell_of(study), "timing", lambda rows: [row | {"ms": 4.5} for row in rows])
    assert results("diff", study, other) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"both lynx(alpha=1, beta=1) batch 3 seed 0 ({cell.name} -> {cell.name})",
        "  decode step, ms: 4.5 [4.5, 4.5] -> 9 [9, 9]",
        "6 pairs: 6 equal in science, 0 not",
        "time a token: 1.41 times before, geometric mean of 2 pairs",
    ]


def test_a_changed_response_and_its_score(study: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = cell_of(other)
    in_both(first("mini_truthfulqa_gen", response="A text that nobody gave."))(cell)
    edit(cell, "metrics.json", at("metrics", 0, "value", value=0.8))
    rows = read_cell(cell).samples().to_pylist()
    scores = [float(row["score"]) for row in rows if row["subtask"] == "mini_truthfulqa_gen"]
    assert scores[0] in (0.0, 1.0)
    edit(cell, "samples", first("mini_truthfulqa_gen", scores=f'{{"exact_match,sentence": {1 - scores[0]}}}'))
    assert results("diff", study, other) == 1
    head, metric, same, count, minus, plus, time, *_ = capsys.readouterr().out.splitlines()
    assert head.startswith("both lynx(alpha=1, beta=1) batch 3 seed 0 (")
    changed = np.array([1 - 2 * scores[0], 0, 0, 0, 0])
    lanes = [row["lane"] for row in rows if row["subtask"] == "mini_truthfulqa_gen"]
    by_hand = statistics.paired_difference(1 + changed, np.ones(5), lanes).scaled(100)
    assert by_hand.low is not None and by_hand.high is not None
    assert metric.endswith(f" -> 80.00 %, {by_hand.value:+.2f} [{by_hand.low:+.2f}, {by_hand.high:+.2f}]")
    assert count.startswith("  responses: 1 of 25 differ; the first, mini_truthfulqa_gen ")
    assert minus.startswith("    - '") and plus.startswith("    + 'A text that nobody gave.'")
    assert same.startswith("  mini_truthfulqa_mc1 acc,none: ") and ", +0.00 [-" in same
    assert time.startswith("  decode step, ms: "), "active experts are equal"


def test_each_part_of_the_science_counts(study: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def unequal(what: str) -> None:
        assert results("diff", study, other) == 1
        out = capsys.readouterr().out
        assert what in out and out.endswith("6 pairs: 5 equal in science, 1 not\n" + UNCHANGED)
        shutil.rmtree(other)
        shutil.copytree(study, other)

    edit(cell_of(other), "steps", at(0, "active_experts", value=7))
    unequal("  active experts: ")
    edit(cell_of(other), "metrics.json", at("kl", value=0.5))
    unequal("  KL from vanilla, nats a token: ")
    edit(cell_of(other), "responses", first("mini_truthfulqa_mc1", logprob=-50.0))
    unequal("differ, log-likelihoods by up to ")
    edit(cell_of(other), "responses", lambda rows: rows[:-1])
    unequal("  responses: 1 to requests that only one side has")
    edit(cell_of(other), "responses", first("mini_truthfulqa_gen", prompt_hash="0" * 16))
    unequal("  prompts: 1 of 25 are others")
    edit(cell_of(other), "responses", lambda rows: [row | {"lane": 1 - row["lane"] % 2} for row in rows])
    unequal("  plan: other requests share a lane")
    edit(cell_of(other, "mini_wmt16", "top_k"), "metrics.json", at("metrics", 1, "value", value=50.0))
    unequal("  mini_wmt16 ter,none: ")


def test_bleu_has_a_paired_interval(study: Path) -> None:
    vanilla, policy = (read_cell(cell_of(study, "mini_wmt16", name)) for name in ("vanilla", "top_k"))
    change = compare_cells(vanilla, policy).metrics[0]
    assert (change.name, change.unit) == ("bleu,none", "BLEU")
    assert change.before is not None and change.after is not None and change.difference is not None
    assert change.difference.value == pytest.approx(change.after - change.before)
    back = compare_cells(policy, vanilla).metrics[0].difference
    assert back is not None and back.value == pytest.approx(-change.difference.value)


def test_two_cells_are_compared_whatever_they_ask(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The noise floor: vanilla on another plan, whose responses on a CPU are the same."""
    assert results("diff", cell_of(study, "mini_wmt16", "vanilla"), cell_of(study, "mini_wmt16", "noise_floor")) == 1
    out = capsys.readouterr().out
    assert out.startswith("asked: policy.name: vanilla -> noise_floor\n")
    assert "  plan: other requests share a lane" in out and "responses:" not in out and ", +0.00 [-" in out


def test_a_difference_is_of_the_documents_that_both_have(
    study: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of them asked: the score moves, the documents of both do not."""
    cell = cell_of(other, "mini_wmt16", "vanilla")
    kept = len(read_cell(cell).samples().to_pylist()) // 2
    edit(cell, "samples", lambda rows: rows[:kept])
    edit(cell, "metrics.json", at("metrics", 0, "value", value=50.0))
    assert results("diff", study, other) == 1
    out = capsys.readouterr().out
    assert f"on the {kept} documents of both (of {2 * kept} and {kept}) +0.00 [" in out


def test_what_only_one_side_has(study: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost, unfinished = cell_of(other), cell_of(other, "mix", "vanilla")
    shutil.rmtree(lost)
    (unfinished / "DONE").unlink()
    assert results("diff", study, other) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"only in {study}: both lynx(alpha=1, beta=1) batch 3 seed 0 ({lost.name})",
        f"only in {study}: mix shuffled vanilla batch 2 seed 0 ({unfinished.name})",
    ]
    assert lines[2] == f"4 pairs: 4 equal in science, 0 not; 2 only in {study}"
    assert lines[3].endswith(" of 1 pair")


def test_bad_input(study: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cell in list(other.glob("lynx_tiny-*")):
        if "wmt16" not in cell.name:
            shutil.rmtree(cell)
    one, few = tmp_path / "one", tmp_path / "few"
    shutil.copytree(cell_of(study), one / cell_of(study).name)
    shutil.copytree(cell_of(study, "mix", "vanilla"), few / "a")
    shutil.copytree(cell_of(study, "both", "vanilla"), few / "b")
    (few / "a" / "steps.parquet").write_bytes(b"PAR1")
    (tmp_path / "empty").mkdir()
    for arguments, text in (
        ((few, other), "no cell of one asks what a cell of the other does"),
        ((study, tmp_path / "empty"), "holds no finished cell"),
        ((study, tmp_path / "nowhere"), "not a folder"),
        ((study,), "the following arguments are required: B"),
    ):
        assert results("diff", *arguments) == 2
        err = capsys.readouterr().err
        assert text in err and "Traceback" not in err
    assert results("diff", study, few) == 1, "what is whole is compared"
    assert f"set aside: {few / 'a'}: steps.parquet: is not the file that DONE names" in capsys.readouterr().err


def test_the_second_excerpt_begins_where_the_first_does() -> None:
    same = "x" * 40
    before, after = _excerpts(f"{same}a{same * 3}", f"{same}b")
    assert before == f"...{'x' * 24}a{'x' * 47}..." and after == f"...{'x' * 24}b"
    assert _excerpts("a", "b") == ("a", "b") and _excerpts("ab", "abc") == ("ab", "abc")


def record(root: Path, number: int, **fields: Any) -> CellRecord:
    """As much of a cell as matching looks at."""
    folder = root / str(number)
    folder.mkdir()
    asked = {"batch_size": 4, "dtype": "auto", "policy": "lynx", "min_batch": 2} | fields
    lines = [f"batch_size: {asked['batch_size']}", f"dtype: {asked['dtype']}", f"policy: {{name: {asked['policy']}}}"]
    write_text(folder / "config.yaml", "\n".join(lines) + "\n")
    info = {"schema": SCHEMA, "cell_id": str(number), "policy_label": asked["policy"]}
    info |= {"batch_size": asked["batch_size"]}
    write_json(folder / "cell.json", info)
    return read_cell(folder)


cells = st.lists(st.tuples(st.sampled_from([1, 4]), st.sampled_from(["auto", "float32", "bfloat16"])), max_size=6)


@settings(deadline=None, max_examples=40)
@given(before=cells, after=cells, seed=st.integers())
def test_every_cell_is_in_at_most_one_pair(
    before: list[tuple[int, str]], after: list[tuple[int, str]], seed: int, tmp_path_factory: Any
) -> None:
    root = tmp_path_factory.mktemp("match")
    made = [record(root, at, batch_size=size, dtype=dtype) for at, (size, dtype) in enumerate([*before, *after])]
    left, right = made[: len(before)], made[len(before) :]
    found = match(left, right)
    if len(left) == len(right) == 1:
        return
    mine = [pair.before for pair in found.pairs] + found.only_before
    theirs = [pair.after for pair in found.pairs] + found.only_after
    assert len({cell.path for cell in mine}) == len(mine) == len(set(before)), "one of each question and way"
    assert len({cell.path for cell in theirs}) == len(theirs) == len(set(after))
    for pair in found.pairs:
        assert pair.before.info["batch_size"] == pair.after.info["batch_size"]
    exact = {(pair.before.path, pair.after.path) for pair in found.pairs if not pair.changed_fields}
    assert len(exact) == len(set(before) & set(after))
    Random(seed).shuffle(right)
    again = match(left, right)
    assert {(p.before.info["batch_size"], str(p.changed_fields)) for p in again.pairs} == {
        (p.before.info["batch_size"], str(p.changed_fields)) for p in found.pairs
    }


def test_another_number_format_is_the_same_question(tmp_path: Path) -> None:
    old = [record(tmp_path, 0, dtype="float32"), record(tmp_path, 1, batch_size=1)]
    new = [record(tmp_path, 2, dtype="bfloat16"), record(tmp_path, 3, batch_size=1)]
    found = match(old, new)
    assert [pair.changed_fields for pair in found.pairs] == [{"dtype": ("float32", "bfloat16")}, {}]


def test_what_is_asked_and_how(ran: Path) -> None:
    config = read_config_yaml(cell_of(ran))
    asked = question(config)
    assert asked["policy.alpha"] == 1.0 and asked["task.subtasks"] == ["mini_truthfulqa_gen", "mini_truthfulqa_mc1"]
    assert not {"results", "study_name", "dtype", "measure.latency", "waves"} & set(asked)
    assert means(config)["measure.repeats"] == 2 and {USES[name].role for name in means(config)} == set(HOW)
    vanilla = read_config_yaml(cell_of(ran, "both", "vanilla"))
    assert {name for name in question(vanilla) if name.startswith("policy")} == {"policy.name"}
    assert read_config_yaml(ran) == {}


def test_fields_that_came_later_ask_nothing_at_their_defaults() -> None:
    old = {"seed": 0, "model": {"kind": "bundled"}, "policy": {"name": "lynx", "alpha": 3.0}}
    new = {"seed": 0, "model": {"kind": "bundled", "sizes": {}}, "policy": old["policy"] | {"k2": None}}
    new["policy"] |= {"weights": "renormalize"}
    assert question(old) == question(new)
    new["policy"] |= {"weights": "original"}
    assert question(old) != question(new)
