"""What of a record is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.tracking import run_content as content
from tests.tracking.conftest import Write


@given(st.lists(st.text(alphabet="ab\n", max_size=3), max_size=3), st.lists(st.text(alphabet="ab", max_size=3)))
def test_ids_are_those_of_their_parts(first: list[str], second: list[str]) -> None:
    assert content.run_id(*first) == content.run_id(*first)
    if "\n".join(first) != "\n".join(second):
        assert content.run_id(*first) != content.run_id(*second)
    assert len(content.run_id(*first)) == 20 and content.run_id(*first).isalnum()


def test_a_cell_is_one_run_however_often_it_ran(write: Write) -> None:
    record, other = write(), write("other")
    again = type(record)(**(vars(record) | {"status": {"attempt": 9}}))
    assert content.run_id_of(again) == content.run_id_of(record) != content.run_id_of(other)


def test_the_run_is_named_as_people_expect(write: Write) -> None:
    about = content.init_arguments(write())
    assert {key: about[key] for key in ("name", "group", "job_type", "tags")} == {
        "name": "t lynx(alpha=3) b4", "group": "demo", "job_type": "eval", "tags": ["t", "lynx", "batch_4"],
    }  # fmt: skip
    config = about["config"]
    assert (
        config["batch_size"] == 4 and config["policy_label"] == "lynx(alpha=3)" and config["cell"]["num_experts"] == 8
    )
    assert str(Path.home()) not in str(config) and config["results"] == "~/results"


def test_summary(write: Write) -> None:
    assert content.summary(write()) == {
        "active_experts": 3.5, "active_experts_full": 3.25, "kl": 0.01, "agreement": 0.9, "matched/value": 2.5,
        "one/active_experts": 3.0, "two/active_experts": 4.0,
        "one/acc,none": 0.5, "score/one": 0.5, "one/acc_norm,none": 0.25,
        "vanilla_step_ms": 5.0, "step_ms": 2.5, "speedup": 2.0, "seconds": 1.5, "attempt": 2,
        "step_gb": 0.01, "gb_s": 4.0, "s_mbu": 0.2, "copy_gb_s": 20.0,
    }  # fmt: skip
    vanilla = content.summary(write("base", "vanilla"))
    assert vanilla["step_ms"] == vanilla["vanilla_step_ms"] == 4.0 and vanilla["speedup"] == 1.0
    assert (vanilla["step_gb"], vanilla["s_mbu"], vanilla["j_per_token"]) == (0.02, 0.5, 0.25)


def test_curves_are_means_and_histograms_of_each_step(write: Write) -> None:
    rows = list(content.curves(write(steps=2)))
    assert [row["decode_step"] for row in rows] == [0, 1]
    counts, edges = rows[1]["steps/one/histogram"]
    assert edges == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5] and counts == [0, 0, 1, 2, 1]  # 2, 3 in lane 0; 3, 4 in lane 1
    assert rows[1]["steps/one/active_experts"] == 3.0 and rows[1]["steps/two/live_rows"] == 3.5


@pytest.mark.parametrize(("steps", "every"), [(512, 1), (513, 2), (1200, 3)])
def test_long_curves_are_thinned(write: Write, steps: int, every: int) -> None:
    shown = [row["decode_step"] for row in content.curves(write(steps=steps))]
    assert shown == list(range(0, steps, every)) and len(shown) <= content.STEPS_SHOWN


def test_samples_are_taken_of_every_subtask(write: Write) -> None:
    rows = content.samples(write())
    assert len(rows) == content.SAMPLES_SHOWN
    assert [row[0] for row in rows] == ["one"] * 50 + ["two"] * 50
    named = dict(zip(content.SAMPLE_COLUMNS, rows[51], strict=True))
    assert named["doc_id"] == 1 and named["score"] is None and named["response"] == "the answer 1"
