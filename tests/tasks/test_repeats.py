"""Several responses to a document: each is scored by the task's own scorer, unless the task knows what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lm_eval.filters import build_filter_ensemble

from lynx_exp.config import Config, ModelConfig, TaskConfig
from lynx_exp.run.load_tasks import tasks_of
from lynx_exp.tasks import TaskSettings, load_task
from lynx_exp.tasks.repeated import keeps_one, pass_metric, powers, together

SAMPLED = TaskSettings(repeats=4, temperature=1.0)


def test_each_response_counts() -> None:
    task = load_task("mini_gsm8k", limit=3, settings=SAMPLED)
    answers = [task.lm_eval_task.doc_to_target(instance.doc) for instance in task.lm_eval_task.instances]
    right = (4, 1, 0)
    responses = [answers[doc] if at < n else "no number" for doc, n in enumerate(right) for at in range(4)]
    responses[4:8] = reversed(responses[4:8])  # the first of the second document's is wrong
    scores = task.score(responses)
    values = {metric.metric: metric.value for metric in scores.metrics if metric.filter == scores.headline.filter}
    name = scores.headline.metric
    assert values[name] == pytest.approx((1 + 1 / 4 + 0) / 3) and scores.headline.samples == 3
    assert values[f"{name}_pass@2"] == pytest.approx((1 + 1 / 2 + 0) / 3), "1 - C(3, 2) / C(4, 2)"
    assert values[f"{name}_pass@4"] == pytest.approx(2 / 3)
    assert [sample.repeat_scores for sample in scores.samples] == [(1, 1, 1, 1), (0, 0, 0, 1), (0, 0, 0, 0)]
    assert [(sample.score, sample.request) for sample in scores.samples] == [(1, 0), (0.25, 4), (0, 8)]
    assert json.dumps(scores.samples[1].scores), "plain numbers"


def test_one_response_is_scored_as_ever() -> None:
    task = load_task("mini_gsm8k", limit=2)
    scores = task.score(["x"] * 2)
    assert {sample.repeat_scores for sample in scores.samples} == {None}
    assert not any("pass@" in metric.metric for metric in scores.metrics)


@pytest.mark.parametrize(
    ("filters", "alone"),
    [
        ([["take_first", None]], True),
        ([["regex", {"regex_pattern": "(.*)"}], ["take_first", None]], True),
        ([["regex", {"regex_pattern": "(.*)"}], ["majority_vote", None], ["take_first", None]], False),
        ([["take_first_k", {"k": 2}], ["take_first", None]], False),
        ([["custom", {"filter_fn": list}]], False),
    ],
)
def test_a_task_that_takes_or_votes_on_all_keeps_that(filters: list[Any], alone: bool) -> None:
    """HumanEval's filter is a custom one: its pass@k is of all responses already."""
    assert keeps_one([build_filter_ensemble("f", filters)]) is alone


def test_a_score_of_the_corpus_is_that_of_the_first_responses() -> None:
    task, alone = (load_task("mini_wmt16", limit=3, settings=s) for s in (SAMPLED, TaskSettings(temperature=1.0)))
    said = ["ein Haus", "zwei", "drei Hunde"]
    several = task.score([text for one in said for text in (one, "x", "y", "z")])
    assert several.headline.value == alone.score(said).headline.value
    assert {sample.repeat_scores for sample in several.samples} == {None}


def test_means_and_what_is_no_number() -> None:
    each = [[{"a": 1.0, "b": 3.0, "c": ("x", "y")}, {"a": 0.0, "b": 4.0, "c": ("z", "y")}]]
    assert together(each) == [{"a": 0.5, "b": 3.5, "c": ("x", "y"), "a_pass@2": 1.0}]
    assert pass_metric("pass@1", 4) == "pass@4"
    assert (powers(2), powers(4), powers(6), powers(64)) == ([2], [2, 4], [2, 4, 6], [2, 4, 8, 16, 32, 64])


@pytest.mark.parametrize(
    ("subtasks", "said"),
    [
        (["mini_gsm8k"], "task.repeats=4: mini_gsm8k decodes greedily"),
        (["mini_truthfulqa_mc1"], "task.repeats=4: mini_truthfulqa_mc1 scores choices, once"),
    ],
)
def test_pointless_repeats(subtasks: list[str], said: str) -> None:
    task = TaskConfig(name="t", subtasks=subtasks, repeats=4)
    config = Config(model=ModelConfig(kind="bundled", id="lynx_tiny"), policy={"name": "vanilla"}, task=task, limit=2)
    with pytest.raises(ValueError, match=said):
        tasks_of(config, load_task, 2)
