"""Documents that are not here: planned as the task's file declares them, else refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from lynx_exp.config import Config, TaskConfig, config_folder
from lynx_exp.run import declared_task as module
from lynx_exp.run.declared_task import DeclaredTask, declared_task
from lynx_exp.tasks import TaskSettings
from lynx_exp.tasks.data import ModelUnavailable


def test_requests_are_as_many_and_as_long_as_declared() -> None:
    size = (("documents", 1319), ("example", 540), ("prompt", 255))
    whole = declared_task("gsm8k", None, TaskSettings(), *size)
    assert len(whole.requests) == 1319 and {len(request.prompt) for request in whole.requests} == {255 + 5 * 540}
    assert {request.max_new_tokens for request in whole.requests} == {256}, "as lm-eval's definition leaves it"
    assert len({request.prompt for request in whole.requests}) == 1319, "no two share a prefill"
    short = declared_task("gsm8k", 8, TaskSettings(num_fewshot=0, max_gen_toks=32, repeats=4, temperature=1.0), *size)
    assert [request.doc_id for request in short.requests] == [doc for doc in range(8) for _ in range(4)]
    assert {(len(request.prompt), request.max_new_tokens) for request in short.requests} == {(255, 32)}
    with pytest.raises(ValueError, match="can be planned, and not scored"):
        short.score([""] * 32)


def test_choices_are_scored_and_not_generated() -> None:
    size = (("choice", 47), ("choices", 5), ("documents", 3), ("prompt", 700))
    task = declared_task("truthfulqa_mc1", None, TaskSettings(), *size)
    assert task.kind == "choice" and len(task.requests) == 15
    assert {len(request.continuation or "") for request in task.requests} == {47}
    assert {request.max_new_tokens for request in task.requests} == {0}


def test_a_plan_takes_it_and_a_run_does_not(bench: Any, config: Callable[..., Config]) -> None:
    def load(name: str, **given: Any) -> Any:
        raise ModelUnavailable("task.data=hub: some/questions is not in the local cache")

    bench.load = load
    plain = config(plan=True)
    task = replace(plain.task, subtasks=["gsm8k"], size={"gsm8k": {"documents": 9, "prompt": 40}})
    real = replace(plain, task=task)
    with pytest.raises(ValueError, match="some/questions is not in the local cache"):
        bench.run([replace(real, plan=False)])
    bench.run([real])
    assert "9 requests" in bench.text() and "to download: the documents of gsm8k, whose number" in bench.text()
    with pytest.raises(ValueError, match="some/questions is not in the local cache"):
        bench.run([replace(real, task=replace(task, size={}))])


def test_what_is_here_counts(bench: Any, config: Callable[..., Config]) -> None:
    plain = config(plan=True)
    size = {name: {"documents": 99, "prompt": 40} for name in plain.task.subtasks}
    bench.run([replace(plain, task=replace(plain.task, size=size))])
    assert "5 requests" in bench.text() and "to download: the documents" not in bench.text()


def test_a_size_by_a_group_s_name_is_that_of_each_task(
    config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, **given: Any) -> Any:
        raise ModelUnavailable("task.data=hub: some/questions is not in the local cache")

    monkeypatch.setattr(module, "_members", {"gsm8k_all": ("gsm8k", "gsm8k_cot")}.__getitem__)
    plain = config(plan=True)
    task = replace(plain.task, subtasks=["gsm8k_all"], size={"gsm8k_all": {"documents": 7, "prompt": 40}})
    loaded = module.declared_where_missing(replace(plain, task=task), load)
    assert [len(loaded(name, limit=None).requests) for name in ("gsm8k", "gsm8k_cot")] == [7, 7]
    with pytest.raises(ModelUnavailable):
        loaded("humaneval", limit=None)


def test_every_task_of_conf_declares_its_documents() -> None:
    """Those of the hub; the mini tasks are in the package."""
    for file in sorted(config_folder().glob("task/*.yaml")):
        known = yaml.safe_load(file.read_text())
        names = [name for name in known["subtasks"] if isinstance(name, str) and not name.startswith("mini_")]
        if file.stem not in ("custom", "mix"):
            assert set(names) == set(known.get("size", {})), file.name


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (3, "task.size.q=3: must give documents and prompt"),
        ({"documents": 3}, "must give documents and prompt"),
        ({"documents": 0, "prompt": 4}, "task.size.q.documents=0"),
        ({"documents": 3, "prompt": 4, "answers": 2}, "task.size.q=answers: must be one of documents, prompt"),
        ({"documents": 3, "prompt": 4, "choices": 2}, "must give both choices and choice, or neither"),
    ],
)
def test_bad_sizes(size: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TaskConfig(name="q", subtasks=["q"], size={"q": size})


def test_it_is_another_kind_of_task() -> None:
    assert isinstance(declared_task("humaneval", 2, TaskSettings(), ("documents", 164), ("prompt", 451)), DeclaredTask)
