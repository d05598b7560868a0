"""Cases that are drawn once are as many as hypothesis draws, and a failure among them is not lost."""

from __future__ import annotations

import inspect
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn_once import given_once

same_cases = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE", "same") != "same", reason="the other profile draws anew each time"
)


@same_cases
def test_every_parameter_has_the_same_cases_and_copies_of_its_own() -> None:
    seen: dict[str, list[list[int]]] = {"one": [], "two": []}

    @given_once(20, case=st.lists(st.integers(), max_size=3))
    def check(name: str, case: list[int]) -> None:
        seen[name].append(list(case))
        case.append(0)

    check(name="one"), check(name="two")
    assert seen["one"] == seen["two"] and len(seen["one"]) == 20
    assert list(inspect.signature(check).parameters) == ["name"]


@same_cases
def test_hypothesis_itself_gives_every_parameter_the_same() -> None:
    seen: dict[str, list[int]] = {"one": [], "two": []}

    @settings(max_examples=20)
    @given(case=st.integers())
    def check(name: str, case: int) -> None:
        seen[name].append(case)

    check(name="one"), check(name="two")
    assert seen["one"] == seen["two"]


def test_a_failure_is_shrunk() -> None:
    failed: list[int] = []

    @given_once(50, case=st.integers(0, 1000))
    def check(case: int) -> None:
        if case >= 10:
            failed.append(case)
        assert case < 10

    with pytest.raises(AssertionError):
        check()
    assert failed[-1] == 10
