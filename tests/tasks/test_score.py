from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

WRONG = {"mini_gsm8k": " 1 + 1 = 2.\n#### -7", "mini_humaneval": "    return 'wrong'\n", "mini_truthfulqa_gen": " No."}
N = 10


def gold(items, name: str) -> list[str]:
    return [item.answer for item in items(name)[:N]]


def values(scores) -> dict[tuple[str, str], float]:
    return {(metric.metric, metric.filter): metric.value for metric in scores.metrics}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("right", [0, N // 2, N])
def test_accuracy_is_the_share_of_right_answers(name, right, task, items):
    scores = task(name, N).score(gold(items, name)[:right] + [WRONG[name]] * (N - right))
    assert set(values(scores).values()) == {right / N}
    assert [sample.score for sample in scores.samples] == [1.0] * right + [0.0] * (N - right)
    assert scores.headline.metric == task(name, N).headline
    assert scores.headline.samples == N and not scores.headline.corpus and scores.headline.higher_is_better


def test_metric_and_filter_names(task, items):
    names = {name: list(values(task(name, N).score(gold(items, name)))) for name in WRONG}
    assert names == {
        "mini_gsm8k": [("exact_match", "strict-match"), ("exact_match", "flexible-extract")],
        "mini_humaneval": [("pass@1", "run-tests")],
        "mini_truthfulqa_gen": [("exact_match", "sentence")],
    }


def test_strict_and_flexible_differ_where_the_mark_is_missing(task, items):
    numbers = [item.answer.rpartition("#### ")[2] for item in items("mini_gsm8k")[:N]]
    scores = task("mini_gsm8k", N).score([f" So it is {number}" for number in numbers])
    assert values(scores) == {("exact_match", "strict-match"): 0.0, ("exact_match", "flexible-extract"): 1.0}
    assert scores.samples[0].scores == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}
    assert scores.samples[0].score == 0.0 and scores.samples[0].filtered == "[invalid]"


def test_code_samples_say_why_they_failed(task, items):
    forger = "    class passed(Exception): pass\n    raise passed\n"
    responses = ["    return 1 +\n", "    import os\n    os._exit(0)\n", forger, *gold(items, "mini_humaneval")[3:]]
    samples = task("mini_humaneval", N).score(responses).samples
    assert [sample.filtered for sample in samples[:4]] == [
        "raised SyntaxError",
        "exited with status 0 before the tests ended",
        "raised passed",
        "passed",
    ]
    assert [sample.score for sample in samples] == [0.0] * 3 + [1.0] * (N - 3)


@pytest.mark.parametrize(("best", "accuracy"), [(0, 1.0), (2, 0.0)])
def test_choice_follows_the_likeliest(best, accuracy, task, items):
    responses = [(-1.0 if choice == best else -2.0, choice == best) for _ in range(N) for choice in range(4)]
    scores = task("mini_truthfulqa_mc1", N).score(responses)
    assert values(scores) == {("acc", "none"): accuracy}
    doc = items("mini_truthfulqa_mc1")[0].doc
    assert (scores.samples[0].target, scores.samples[0].filtered) == (doc["answer"], doc["choices"][best])


def test_translation(task, items):
    wmt16 = task("mini_wmt16", N)
    perfect, wrong = wmt16.score(gold(items, "mini_wmt16")), wmt16.score(["xyz"] * N)
    assert values(perfect) == pytest.approx({("bleu", "none"): 100.0, ("ter", "none"): 0.0, ("chrf", "none"): 100.0})
    assert values(wrong)["bleu", "none"] == 0.0
    half = wmt16.score(gold(items, "mini_wmt16")[: N // 2] + ["xyz"] * (N // 2)).headline
    assert 0 < half.value < 100 and half.corpus and half.metric == "bleu"
    assert [metric.higher_is_better for metric in perfect.metrics] == [True, False, True]


def test_corpus_metric_can_be_had_again_from_target_and_filtered(task, items):
    import sacrebleu

    responses = gold(items, "mini_wmt16")[: N - 3] + [" Der Hund sieht die kleine Katze."] * 3
    scores = task("mini_wmt16", N).score(responses)
    assert all(sample.score is None and sample.scores == {} for sample in scores.samples)
    again = sacrebleu.corpus_bleu([s.filtered for s in scores.samples], [[s.target for s in scores.samples]])
    assert scores.headline.value == again.score


@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=N, max_size=N))
def test_score_depends_on_the_responses_alone(task, responses):
    gsm8k = task("mini_gsm8k", N)
    before = gsm8k.score(responses)
    gsm8k.score([" #### 5"] * N)
    assert gsm8k.score(responses) == before


def test_responses_of_the_wrong_number_or_kind(task):
    with pytest.raises(ValueError, match="responses: 2 of them, mini_gsm8k has 10 requests"):
        task("mini_gsm8k", N).score(["a", "b"])
    with pytest.raises(ValueError, match=r"responses\[0\]: \(-1.0, True\), mini_gsm8k needs a text"):
        task("mini_gsm8k", N).score([(-1.0, True)] * N)
    with pytest.raises(ValueError, match=r"responses\[0\]: 'a', mini_truthfulqa_mc1 needs a \(log-likelihood"):
        task("mini_truthfulqa_mc1", N).score(["a"] * 4 * N)


def test_a_prompt_that_does_not_compile_alone():
    """Infilling cuts a prompt in the middle of a function: its whole helpers are the test's, the rest is completed."""
    from lynx_exp.tasks import run_programs
    from lynx_exp.tasks.code import program_of

    helper = "def twice(x):\n    return 2 * x\n\n"
    for cut, rest in (
        ("def f(x):\n    if x:\n", "        return twice(x)\n"),
        ("def f(x):\n    # Double.\n", "    return twice(x)\n"),
    ):
        doc = {"prompt": helper + cut, "test": "def check(c):\n    assert c(3) == twice(3)\n", "entry_point": "f"}
        program = program_of(helper + cut + rest, f"{doc['test']}\ncheck(f)", doc)
        assert program.prelude == helper and program.entry_point == "f"
        [verdict] = run_programs([program], timeout_s=30.0)
        assert verdict.reason == "passed"
