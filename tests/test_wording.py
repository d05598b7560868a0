"""Words for people come from one place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.wording import as_bytes, counted, did_you_mean, first_line, policy_label

ROOT = Path(__file__).parents[1]
ONCE = {
    "get_close_matches": "did_you_mean",
    ".splitlines()[0]": "first_line",
    ".splitlines() or [": "first_line",
    'partition("\\n")[0]': "first_line",
    "prompt.encode()).hexdigest()": "prompt_hash",
    "== 1 else 's'}": "counted",
    '== 1 else "s"': "counted",
}
"""What one function does for all: its mark in the source, and its name."""
APART = ("lynx_exp/wording.py", "lynx_exp/store/tables.py", "lynx_exp/tasks/sandbox/start_supervisor.py")
"""The functions themselves; and what a child process wrote to its standard error, which is no error of ours."""


@pytest.mark.parametrize("mark", ONCE)
def test_nobody_does_it_again(mark: str) -> None:
    paths = [path for part in ("lynx_exp", "analysis") for path in (ROOT / part).rglob("*.py")]
    again = [path.relative_to(ROOT).as_posix() for path in paths if mark in path.read_text()]
    assert set(again) <= {*APART}, f"use {ONCE[mark]}"


@given(st.text() | st.builds(ValueError, st.text()) | st.builds(KeyError))
def test_an_error_always_has_one_line(error: str | Exception) -> None:
    line = first_line(error)
    assert len(line.splitlines()) <= 1 and line == line.strip()
    assert line or (isinstance(error, str) and not error.strip())


def test_first_lines() -> None:
    assert first_line(ValueError("\n  a: b  \nmore")) == "a: b"
    assert first_line(RuntimeError()) == "RuntimeError" and first_line("") == ""


def test_one_thing_is_no_things() -> None:
    assert [counted(number, "cell") for number in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]
    assert counted(1234, "finished cell", "{:,}") == "1,234 finished cells"


def test_near_names_are_suggested() -> None:
    assert did_you_mean("lynxx", ["oea", "lynx"]) == "; did you mean lynx?"
    assert did_you_mean("min_k_num", ["min_num", "num_k_min"]) == "; did you mean num_k_min?"
    assert did_you_mean("lynx", ["oea"]) == "" == did_you_mean("lynxabc", ["lynx"], cutoff=0.8)


def test_a_label_leaves_out_what_is_usual_and_hidden() -> None:
    usual = {"alpha": 3.0, "bins": "ceil", "beta": None}
    assert policy_label("lynx", usual, usual, {"bins"}) == "lynx(alpha=3)"
    assert policy_label("lynx", usual | {"bins": "continuous"}, usual, {"bins"}) == "lynx(alpha=3, bins=continuous)"
    assert policy_label("sere", {"calibration": "a/b.st"}, {}, (), match_active=None, layers="1:") == (
        "sere(calibration=b, layers=1:)"
    )
    assert policy_label("no_drop", {"min_batch": 2}, {"min_batch": 2}, {"min_batch"}) == "no_drop"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**20, "3.0 MiB"), (5 * 2**40, "5120.0 GiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert as_bytes(size) == text
