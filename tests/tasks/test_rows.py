"""Documents in files as people and other programs write them; each fault named by file, place and field."""

from __future__ import annotations

import gzip
import json
import math

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.tasks import TaskSettings, load_task
from lynx_exp.tasks.data import LocalData
from lynx_exp.tasks.document_files import read_rows

ROW = {"question": "How many?", "answer": "It is one.\n#### 1"}


def lines(path, rows, **how) -> str:
    path.write_text("".join(json.dumps(row, **how) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def asked(path: str, **more):
    return load_task("gsm8k", settings=TaskSettings(data=path, num_fewshot=0, **more))


def test_every_field_of_any_document_is_kept(tmp_path):
    rows = [{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "#### 2", "hint": "two"}]
    lines(tmp_path / "rows.jsonl", rows)
    stored = LocalData((("test", tmp_path / "rows.jsonl"),))()["test"]
    assert stored.column_names == ["question", "answer", "hint"]
    assert [row["hint"] for row in stored] == [None, "two"]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz", ".json.gz"])
@pytest.mark.parametrize("begin", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("feed", ["\n", "\r\n", "\n\n"], ids=["lf", "crlf", "blank lines"])
def test_a_line_ends_at_a_line_feed_and_nowhere_else(ending, begin, feed, tmp_path):
    rows = [{"question": "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg", "answer": "#### 1"}, ROW]
    text = begin + feed.join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = tmp_path / f"rows{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    assert read_rows(path) == rows
    assert [doc["question"] for doc in LocalData((("test", path),))()["test"]] == [row["question"] for row in rows]


MISFITS = {
    "text among numbers": ([{"n": 1}, {"n": None}, {"n": "two"}], "line 3: field n: str 'two', and int 1 in line 1"),
    "number among texts": ([{"n": "a"}, {"n": 2.5}], "line 2: field n: float 2.5, and str 'a' in line 1"),
    "truth among numbers": ([{"n": 1}, {"n": True}], "line 2: field n: bool True, and int 1 in line 1"),
    "list among texts": ([{"n": "a"}, {"n": ["a"]}], r"line 2: field n: list \['a'\], and str 'a' in line 1"),
    "within a list": ([{"n": [1]}, {"n": ["a"]}], r"line 2: field n: list \['a'\], and list \[1\] in line 1"),
    "a huge number": ([{"n": 1}, {"n": 2**70}], r"line 2: field n: int 1180591620717411303424 cannot be stored"),
    "half a character": ([{"n": "a"}, {"n": "\ud800"}], r"line 2: field n: str '\\ud800' cannot be stored"),
    "only in a late field": ([{"a": 1}, {"a": 2, "b": "x"}, {"a": 3, "b": 7}], "line 3: field b: int 7, and str 'x'"),
}


@pytest.mark.parametrize(("rows", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_go_together_is_named(rows, message, tmp_path):
    path = lines(tmp_path / "rows.jsonl", [ROW | row for row in rows])
    with pytest.raises(ValueError, match=message) as caught:
        asked(path)
    text = str(caught.value)
    assert text.startswith(f"task.data: {path}, line ") and "\n" not in text
    text.encode()


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'{{"question": {DEEP}', "line 1: not JSON"),
        ('{"question": ' + "[" * 90 + "]" * 90 + "}", "line 1: field question: nested more than 64 deep"),
        ('{"question": ' + "9" * 5000 + "}", "line 1: not JSON"),
        ('{"question": null, "answer": "1"}', "line 1: field question is null, must be a text"),
        ('{"question": NaN, "answer": "1"}', "line 1: field question is NaN, must be a text"),
        ('{"question": "a", "answer": "1"}\n{"answer": "1"}', "line 2: field question is missing, must be a text"),
        ('{"question": "a", "answer": NaN}', "line 1: field answer is NaN, must be a text"),
    ],
)
def test_what_is_no_text_is_named(content, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        asked(str(path))
    assert str(caught.value).startswith(f"task.data: {path}, line ") and "\n" not in str(caught.value)


def test_nan_in_parquet_is_named_where_a_text_is_due_and_nowhere_else(tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame([ROW | {"weight": math.nan}, ROW | {"weight": 2.0}]).to_parquet(path)
    assert len(asked(str(path)).requests) == 2
    path = tmp_path / "other.parquet"
    pd.DataFrame([{"question": math.nan, "answer": "1"}]).to_parquet(path)
    with pytest.raises(ValueError, match=r"other\.parquet, document 1: field question is (NaN|null), must be a text"):
        asked(str(path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.dictionaries(st.sampled_from(["question", "answer", "n", "m"]), VALUES), max_size=5))
def test_any_file_loads_or_is_refused_in_one_line(rows, tmp_path_factory):
    path = lines(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)
    try:
        asked(path)
    except ValueError as error:
        assert str(error).startswith("task.data") and "\n" not in str(error)


def test_tasks_of_one_name_are_refused(tmp_path):
    from lynx_exp.config import Config, ModelConfig, TaskConfig, TrackerConfig
    from lynx_exp.run.load_tasks import tasks_of

    data, paths = lines(tmp_path / "rows.jsonl", [ROW]), []
    for name in ("one", "two"):
        paths.append(str(tmp_path / f"{name}.yaml"))
        (tmp_path / f"{name}.yaml").write_text(
            f"task: riddle\ntest_split: test\noutput_type: generate_until\ndoc_to_text: '{name} {{{{question}}}}'\n"
            "doc_to_target: answer\nmetric_list: [{metric: exact_match}]\n"
        )
    for weights in (None, [1.0, 2.0]):
        config = Config(
            model=ModelConfig(kind="bundled", id="lynx_tiny"),
            policy={"name": "vanilla"},
            task=TaskConfig(name="custom", subtasks=paths, data=data, weights=weights),
            tracker=TrackerConfig(),
        )
        with pytest.raises(ValueError, match=rf"task\.subtasks={paths[0]},{paths[1]}: both are called riddle"):
            tasks_of(config, load_task, None)
