"""What a task's file declares of documents that are not here: as many requests of such lengths, for a plan."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal

from lynx_exp.config import Config
from lynx_exp.store.identity import digest
from lynx_exp.tasks import EvalTask, TaskRequest, TaskSettings
from lynx_exp.tasks.definition import find_definition, members_of, plain_definition
from lynx_exp.tasks.task import BuiltTask, TaskSpec
from lynx_exp.tasks.task_settings import Generation

if TYPE_CHECKING:
    from lynx_exp.run.load_tasks import LoadTask


class DeclaredTask(EvalTask):
    """Requests of declared lengths, whose texts say nothing. It is planned, never asked or scored."""


def declared_where_missing(config: Config, load: LoadTask) -> LoadTask:
    """`load`, and for documents that are not here what the config's task declares of them."""
    from lynx_exp.tasks.data import ModelUnavailable

    def loaded(name: str, *, limit: int | None = None, settings: TaskSettings | None = None) -> EvalTask:
        try:
            return load(name, limit=limit, settings=settings)
        except ModelUnavailable:
            size = _size_of(name, config.task.size)
            if size is None:
                raise
        return declared_task(name, limit, settings or TaskSettings(), *sorted(size.items()))

    return loaded


def _size_of(name: str, sizes: Mapping[str, Mapping[str, int]]) -> Mapping[str, int] | None:
    """Of the task, or of each task of a group that it is one of."""
    if name in sizes:
        return sizes[name]
    return next((size for group, size in sizes.items() if name in _members(group)), None)


@cache
def _members(name: str) -> tuple[str, ...]:
    return members_of(name)


@cache
def declared_task(name: str, limit: int | None, settings: TaskSettings, *sizes: tuple[str, int]) -> DeclaredTask:
    """`sizes`: (name, number), as `TaskConfig.size` has them."""
    size: Mapping[str, int] = dict(sizes)
    definition = plain_definition(find_definition(name))
    shots = settings.num_fewshot if settings.num_fewshot is not None else int(str(definition.get("num_fewshot") or 0))
    documents = size["documents"] if limit is None else min(limit, size["documents"])
    prompt = size["prompt"] + shots * size.get("example", 0)
    choices = size.get("choices", 0)
    repeats = 1 if choices else max(1, settings.repeats or int(str(definition.get("repeats") or 1)))
    kwargs = definition.get("generation_kwargs")
    asked = Generation.of((kwargs if isinstance(kwargs, dict) else {}) | settings.generation())
    requests = []
    for number in range(documents):
        text = f"{number} ".ljust(prompt, ".")
        if choices:
            texts = (f" {choice}".ljust(size["choice"], ".") for choice in range(choices))
            requests += [TaskRequest(doc_id=number, prompt=text, continuation=one, subtask=name) for one in texts]
        else:
            requests += [
                TaskRequest(doc_id=number, prompt=text, max_new_tokens=asked.max_new_tokens, subtask=name)
            ] * repeats
    kind: Literal["generate", "choice"] = "choice" if choices else "generate"
    spec = TaskSpec(
        name=name,
        kind=kind,
        repeats=repeats,
        headline="",
        runs_code=False,
        revision=None,
        data_digest=digest({"declared": [name, *sizes]}),
        requests=tuple(requests),
    )
    return DeclaredTask(spec, _never)


def _never() -> BuiltTask:
    raise ValueError("its documents are not here: it can be planned, and not scored")
