"""Tasks with long answers, by lm-eval's own definitions: what is asked, and what is right; every item is made up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lynx_exp.tasks import TaskSettings, definition, load_task
from tests.tasks import real

PROMPTS = {
    "aime24": "Question: Find the sum of the first ten odd numbers.\nAnswer:",
    "aime25": "Question: Find the sum of the first ten odd numbers.\nAnswer:",
    "mmlu_astronomy_generative": "The following are multiple choice questions (with answers) about astronomy.\n\n"
    "Which colour has the sky?\nA. red\nB. blue\nC. green\nD. grey\nAnswer:",
}


def task(name: str, tmp_path, **more):
    data = real.write_rows(tmp_path / f"{name}.jsonl", real.OF_REASONING[name]())
    return load_task(name, settings=TaskSettings(data=str(data), **more))


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_questions_are_asked_as_lm_eval_defines_them(name, tmp_path):
    asked = task(name, tmp_path, num_fewshot=0).requests[0]
    assert asked.prompt == PROMPTS[name]
    assert asked.max_new_tokens == (32768 if name.startswith("aime") else 256)


@pytest.mark.parametrize("name", ["aime24", "aime25"])
def test_aime_takes_the_answer_in_the_box(name, tmp_path):
    scores = task(name, tmp_path).score(["So it is $\\boxed{100}$.", "$122$", "It is $ 9 $"])
    assert [sample.score for sample in scores.samples] == [1.0, 0.0, 1.0]
    assert (scores.headline.metric, round(scores.headline.value, 3)) == ("exact_match", 0.667)


def test_gpqa_shuffles_its_choices_the_same_wherever_it_is_loaded(tmp_path):
    name = "gpqa_diamond_cot_zeroshot"
    asked = task(name, tmp_path)
    where = tmp_path / f"{name}.jsonl"
    code = f"""
import random; random.seed(7)
from lynx_exp.tasks import TaskSettings, load_task
print([r.prompt for r in load_task({name!r}, settings=TaskSettings(data={str(where)!r})).requests])
"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str([request.prompt for request in asked.requests])
    answers = []
    for row, request in zip(real.gpqa(), asked.requests, strict=True):
        (letter,) = (x for x in "ABCD" if f"({x}) {row['Correct Answer']}\n" in request.prompt)
        answers.append(f"Step by step, the answer must be ({letter})")
    scores = asked.score([*answers[:2], "no idea"])
    by_filter = {metric.filter: metric.value for metric in scores.metrics}
    assert by_filter["flexible-extract"] == pytest.approx(2 / 3)


def test_mmlu_by_likelihoods_and_in_words(tmp_path):
    choices = task("mmlu_astronomy", tmp_path, num_fewshot=0)
    assert choices.kind == "choice" and [request.continuation for request in choices.requests[:2]] == [" A", " B"]
    likely = [(-1.0 if number % 4 == 1 else -2.0, False) for number in range(12)]
    assert choices.score(likely).headline.value == pytest.approx(2 / 3)
    words = task("mmlu_astronomy_generative", tmp_path, num_fewshot=0)
    assert words.score([" B", "a\nrest", "C"]).headline.value == pytest.approx(2 / 3)


def test_math_500_is_judged_by_math_verify():
    assert definition.HEADLINES["minerva_math500"] == "math_verify"


def test_what_lm_eval_does_not_define_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^task: unknown 'livecodebench'") as caught:
        load_task("livecodebench")
    assert "\n" not in str(caught.value)
