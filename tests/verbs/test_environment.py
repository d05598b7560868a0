"""In what environments differ: records of now and of older versions."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.store.environment import differences, fields_of
from lynx_exp.store.provenance import numerics

RECORD: dict[str, Any] = {
    "packages": {"torch": "2.13.0", "pyarrow": "26"},
    "torch": {"cuda": None, "gpus": [], "threads": 2, "cpu_capability": "AVX512"},
    "cpu": "one",
    "cpus": 2,
    "environment": {"OMP_NUM_THREADS": "2"},
    "model": {"dtype": "float32", "device": "cpu", "digest": "d"},
    "code_sha256": "c",
    "python": "3.11",
}


def of(record: dict[str, Any]) -> dict[str, Any]:
    """As it is written now."""
    return record | {"numerics": numerics(record)}


def test_equal_records_do_not_differ() -> None:
    assert differences({"a": RECORD, "b": RECORD}) == {} == differences({"a": of(RECORD), "b": of(RECORD)})
    assert differences({"a": RECORD, "b": of(RECORD)}) == {}, "an older one beside a newer"
    assert differences({}) == differences({"a": {}, "b": RECORD}) == {}, "nothing recorded says nothing"


def test_what_differs_names_value_and_cells() -> None:
    other = RECORD | {"packages": {"torch": "2.12.0", "pyarrow": "25", "triton": "3"}, "environment": {}, "cpus": 64}
    for write in (of, dict):
        assert differences({"a": write(RECORD), "b": write(other), "c": write(other)}) == {
            "cpus": {"2": ["a"], "64": ["b", "c"]},
            "environment.OMP_NUM_THREADS": {"2": ["a"], "none": ["b", "c"]},
            "packages.torch": {"2.13.0": ["a"], "2.12.0": ["b", "c"]},
            "packages.triton": {"none": ["a"], "3": ["b", "c"]},
        }


def test_a_field_that_older_cells_lack_says_nothing() -> None:
    old = {"torch": {"cuda": None, "threads": 2}}
    assert differences(
        {"old": old, "new": of(RECORD | {"torch": RECORD["torch"] | {"git": "abc"}, "packages": {}})}
    ).keys() <= {"environment.OMP_NUM_THREADS"}


values = st.dictionaries(st.sampled_from(["cpu", "packages.torch", "environment.X", "torch.gpus"]), st.integers(0, 2))


@given(st.dictionaries(st.sampled_from("abcd"), values.map(lambda found: {"numerics": found})))
def test_every_value_names_the_cells_that_have_it(records: dict[str, dict[str, Any]]) -> None:
    for name, found in differences(records).items():
        assert len(found) > 1
        cells = [cell for having in found.values() for cell in having]
        assert len(cells) == len(set(cells)) and set(cells) <= set(records)
        for value, having in found.items():
            assert all(fields_of(records[cell]).get(name, "none") == value for cell in having)
