"""The task definitions also serve somebody who uses lm-eval alone, and our scores are the ones that it gives."""

from __future__ import annotations

import pytest

from lynx_exp.tasks import mini_tasks
from lynx_exp.tasks.mini.dataset import FOLDER

N = 6


@pytest.fixture(scope="module")
def results(tmp_path_factory, items):
    """What lm-eval reports for a model that gets every even document right, run from a foreign working directory."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    class EvenOnly(LM):
        def generate_until(self, requests, disable_tqdm=False):
            return [answer(items, request.task_name, request.doc_id) for request in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            return [likelihood(request.doc_id, request.idx) for request in requests]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise AssertionError("no task asks for it")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        return simple_evaluate(
            model=EvenOnly(),
            tasks=list(mini_tasks()),
            task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
            limit=N,
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,
        )["results"]


def answer(items, name: str, doc_id: int) -> str:
    return items(name)[doc_id].answer if doc_id % 2 == 0 else " nothing"


def likelihood(doc_id: int, choice: int) -> tuple[float, bool]:
    return (-1.0, True) if choice == doc_id % 2 else (-5.0, False)


@pytest.mark.parametrize("name", mini_tasks())
def test_same_scores_as_ours(name, results, task, items):
    ours = task(name, N)
    if ours.kind == "choice":
        responses = [likelihood(request.doc_id, number % 4) for number, request in enumerate(ours.requests)]
    else:
        responses = [answer(items, name, request.doc_id) for request in ours.requests]
    metrics = ours.score(responses).metrics
    assert metrics[0].corpus or metrics[0].value == 0.5
    for metric in metrics:
        assert results[name][f"{metric.metric},{metric.filter}"] == metric.value
