from __future__ import annotations

import subprocess
import sys

import pytest

from lynx_exp.tasks import known_tasks, load_task, mini_tasks


def test_known_tasks():
    assert {"gsm8k", "gsm8k_cot", "humaneval", "mbpp", "truthfulqa_mc2", "wmt16-en-de", "mini_gsm8k"} < set(
        known_tasks()
    )
    assert mini_tasks() == (
        "mini_gsm8k",
        "mini_humaneval",
        "mini_truthfulqa_gen",
        "mini_truthfulqa_mc1",
        "mini_wmt16",
    )


def test_names_cost_no_heavy_import():
    heavy = "{'lm_eval', 'torch', 'transformers', 'datasets', 'numpy'}"
    code = f"import sys, lynx_exp.tasks as t; t.known_tasks(); print(*sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini_gsm", r"task: unknown 'mini_gsm'; did you mean mini_gsm8k\? Known tasks: aime24, .*gsm8k, .*mini_wmt16"),
        ("zebra", r"task: unknown 'zebra'\. Known tasks: aime24, .*gsm8k, .*, and every task of lm-eval's own"),
        ("no/such.yaml", "no/such.yaml is not a file; give a task's YAML, or a name that lm-eval knows"),
    ],
)
def test_unknown_task(name, message):
    with pytest.raises(ValueError, match=message):
        load_task(name)


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one(limit):
    with pytest.raises(ValueError, match=f"limit: {limit}, must be at least 1"):
        load_task("mini_gsm8k", limit=limit)


@pytest.mark.parametrize("name", mini_tasks())
def test_limit_takes_the_first_documents(name, task):
    few, whole = task(name, 3), task(name, None)
    assert few.requests == whole.requests[: len(few.requests)]
    assert {request.doc_id for request in few.requests} == {0, 1, 2}


def test_generation_settings(task):
    requests = {name: task(name, 3).requests[0] for name in mini_tasks()}
    assert {name: request.max_new_tokens for name, request in requests.items()} == {
        "mini_gsm8k": 64,
        "mini_humaneval": 72,
        "mini_truthfulqa_gen": 24,
        "mini_truthfulqa_mc1": 0,
        "mini_wmt16": 64,
    }
    assert requests["mini_gsm8k"].until == ("Question:",)
    assert "\ndef" in requests["mini_humaneval"].until
    assert requests["mini_wmt16"].until == requests["mini_truthfulqa_gen"].until == ("\n",)
    assert requests["mini_truthfulqa_mc1"].until == ()


def test_gold_answers_survive_the_stop_strings(task, items):
    for name in set(mini_tasks()) - {"mini_truthfulqa_mc1"}:
        until = task(name, 3).requests[0].until
        assert not [item.answer for item in items(name) if any(stop in item.answer for stop in until)]


def test_choices_of_a_document_stand_together(task, items):
    requests = task("mini_truthfulqa_mc1", 2).requests
    choices = [f" {choice}" for item in items("mini_truthfulqa_mc1")[:2] for choice in item.doc["choices"]]
    assert [request.continuation for request in requests] == choices
    assert [request.doc_id for request in requests] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_loading_is_silent(capfd, caplog):
    load_task("mini_gsm8k", limit=7)  # a limit that no other test uses: not one that is already loaded
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_a_task_is_loaded_once():
    assert load_task("mini_wmt16", limit=3) is load_task("mini_wmt16", limit=3)
    assert load_task("mini_wmt16", limit=3) is not load_task("mini_wmt16", limit=2)
