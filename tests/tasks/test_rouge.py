from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.tasks import TaskSettings, load_task
from lynx_exp.tasks.rouge import no_bootstrap_of_one
from tests.tasks import real

UNIT = st.floats(0, 1)


@settings(deadline=None, max_examples=25)
@given(values=st.lists(st.tuples(UNIT, UNIT, UNIT), min_size=1, max_size=1))
def test_the_bootstrap_of_one_value_is_that_value(values):
    from rouge_score.scoring import BootstrapAggregator

    matrix = np.array(values)
    slow = BootstrapAggregator(n_samples=50)._bootstrap_resample(matrix)
    with no_bootstrap_of_one():
        fast = BootstrapAggregator()._bootstrap_resample(matrix)
    assert np.array_equal(slow, fast)


def test_several_values_are_still_resampled():
    from rouge_score.scoring import BootstrapAggregator

    with no_bootstrap_of_one():
        low, _, high = BootstrapAggregator(n_samples=50)._bootstrap_resample(np.array([[0.0], [1.0]]))
    assert low < high


def test_scores_of_truthfulqa_are_lm_evals(tmp_path):
    file = real.write_rows(tmp_path / "rows.jsonl", real.truthfulqa_gen()[:3])
    task = load_task("truthfulqa_gen", settings=TaskSettings(data=str(file)))
    answers = ["It gets dirty.", " Yes, up to ten", "Into the rivers of cheese"]
    ours = {metric.metric: metric.value for metric in task.score(answers).metrics}
    docs = [instance.doc for instance in task.lm_eval_task.instances]
    theirs = [task.lm_eval_task.process_results(doc, [answer]) for doc, answer in zip(docs, answers, strict=True)]
    assert set(ours) == set(theirs[0]) and len(ours) == 12
    for name, value in ours.items():
        assert value == np.mean([each[name] for each in theirs])
    assert 0 < ours["bleu_max"] < 100
