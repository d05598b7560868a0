"""The tasks of a config: loaded as it asks, with the chat template of its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from lynx_exp.config import Config, ModelConfig, TaskConfig
from lynx_exp.run.declared_turns import declared_drawing, declared_template, is_declared
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from lynx_exp.engine.requests.thoughts import ThinkEnd
    from lynx_exp.run.planned_cell import Task
    from lynx_exp.tasks import EvalTask, TaskRequest, TaskSettings
    from lynx_exp.tasks.chat import ChatTemplate
    from lynx_exp.tasks.mix import MixedTask
    from lynx_exp.tasks.run_programs import Sandbox

LoadTask = Callable[..., "EvalTask"]
"""`load(name, limit=..., settings=...)`"""


def tasks_of(config: Config, load: LoadTask, limit: int | None) -> tuple[EvalTask | MixedTask, ...]:
    """What the cell runs one after another: each subtask (of a group of lm-eval's each of its own), or the mix of them.
    ValueError as in `load_task`."""
    from lynx_exp.tasks.definition import GroupOfTasks

    settings = settings_of(config)
    names, weights = config.task.subtasks, config.task.weights
    if weights is None:
        found: dict[str, EvalTask] = {}
        for name in names:
            try:
                found[name] = load(name, limit=limit, settings=settings)
            except GroupOfTasks as group:
                found |= {member: load(member, limit=limit, settings=settings) for member in group.members}
        _check_repeats(config, list(found.values()))
        return _each_once(list(found), list(found.values()))
    from lynx_exp.tasks.mix import mix

    def member(number: int, documents: int | None) -> EvalTask:
        return load(names[number], limit=documents, settings=settings)

    mixed = mix(config.task.name, member, weights, limit)
    _each_once(names, mixed.members)
    _check_repeats(config, mixed.members)
    return (mixed,)


def _check_repeats(config: Config, tasks: Sequence[EvalTask]) -> None:
    """ValueError where several responses to a document would all be the same, or there are none."""
    repeats = config.task.repeats
    generating = [task for task in tasks if task.kind == "generate"]
    if repeats is None or repeats == 1:
        return
    if not generating:
        raise ValueError(f"task.repeats={repeats}: {tasks[0].name} scores choices, once; leave task.repeats out")
    for task in generating:
        if task.requests[0].temperature == 0:
            raise ValueError(
                f"task.repeats={repeats}: {task.name} decodes greedily, so that each response to a document would be "
                "the same but for who shares its lane; give task.generation.temperature=0.7 or task.generation=model, "
                "or in place of repeats more batch plans (plan_seeds=3)"
            )


def _each_once(names: Sequence[str], tasks: Sequence[EvalTask]) -> tuple[EvalTask, ...]:
    """`tasks`; ValueError where two of them call themselves alike: responses are kept by a task's own name."""
    first: dict[str, str] = {}
    for name, task in zip(names, tasks, strict=True):
        if task.name in first:
            raise ValueError(
                f"task.subtasks={first[task.name]},{name}: both are called {task.name} (`task:` in their YAML); "
                "give one of them another name"
            )
        first[task.name] = name
    return tuple(tasks)


MOST_FILLERS = 256
"""Documents beyond `limit` that a task's fillers come from, or as many as `limit` where that is more: the same for all
batch sizes, whose lanes then share prefilled prompts."""


def with_fillers(config: Config, tasks: Sequence[EvalTask | MixedTask], load: LoadTask) -> tuple[Task, ...]:
    """The tasks, each with the requests of its documents beyond `limit`, in an order of their own, to fill lanes with.
    Where all documents are scored, or lanes are to drain, there are none."""
    if not config.is_filled or config.limit is None:
        return tuple(tasks)
    longer = tasks_of(config, load, config.limit + max(MOST_FILLERS, config.limit))
    return tuple(filled(task, more.requests, more.data_digest) for task, more in zip(tasks, longer, strict=True))


AnyTask = TypeVar("AnyTask", bound="EvalTask | MixedTask")


def filled(task: AnyTask, requests: Sequence[TaskRequest], digest: str) -> AnyTask:
    """A copy of the task whose fillers are those of `requests` that ask of documents that it does not score."""
    scored = {(request.subtask, request.doc_id) for request in task.requests}
    others = [request for request in requests if (request.subtask, request.doc_id) not in scored]
    # always the same order: fillers are part of the plan, and so of the cell's id
    Random(0).shuffle(others)
    # a copy: cells that are not filled may share the same task
    made = copy(task)
    made.fillers, made.fillers_digest = tuple(others), digest if others else None
    return made


def data_digests(tasks: Sequence[EvalTask | MixedTask]) -> dict[str, str]:
    """Of each task's documents, and of those that fill its lanes."""
    own = {task.name: task.data_digest for task in tasks}
    return own | {f"{task.name} fillers": task.fillers_digest for task in tasks if task.fillers_digest is not None}


def settings_of(config: Config) -> TaskSettings:
    """How the config's task is asked."""
    from lynx_exp.tasks import TaskSettings

    task, generation = config.task, config.task.generation
    drawn = drawing_of_model(config) if generation.source == "model" else {}
    chat = _chat_template(config) if task.apply_chat_template else None
    return TaskSettings(
        data=task.data,
        revision=task.revision,
        num_fewshot=task.num_fewshot,
        fewshot_seed=task.fewshot_seed,
        fewshot_as_multiturn=task.fewshot_as_multiturn,
        system_instruction=task.system_instruction,
        chat=chat,
        temperature=drawn.get("temperature") if generation.temperature is None else generation.temperature,
        top_p=drawn.get("top_p") if generation.top_p is None else generation.top_p,
        top_k=drawn.get("top_k") if generation.top_k is None else generation.top_k,
        max_gen_toks=generation.max_gen_toks,
        until=None if generation.until is None else tuple(generation.until),
        repeats=task.repeats,
        think_end=_think_end(config),
        thinking=task.thinking,
    )


def asks_the_model(task: TaskConfig) -> bool:
    """Whether what is asked depends on the model: its chat template, its tokens, or how it samples."""
    return task.apply_chat_template or task.think_end is not None or task.generation.source == "model"


def drawing_of_model(config: Config) -> dict[str, Any]:
    """How the model's generation_config.json draws tokens: temperature (0: greedy), top_p and top_k where it says so.
    ValueError where there is none, or it asks for what is not followed. A plan of a model that is not here goes by its
    preset."""
    from lynx_exp.engine.requests.processing import drawing_of, refuse_drawing

    model = config.model
    if model.kind == "random":
        raise ValueError("task.generation=model: random weights have no generation_config.json; leave it to the task")
    if is_declared(config):
        return declared_drawing(config)
    stated = _generation_config(model.id, model.revision)
    if not stated.do_sample:
        return {"temperature": 0.0}
    drawn = drawing_of(stated)
    refuse_drawing(drawn)
    temperature = 1.0 if stated.temperature is None else float(stated.temperature)
    return {"temperature": temperature} | {name: drawn[name] for name in ("top_p", "top_k") if drawn.get(name)}


@cache
def _generation_config(name: str, revision: str | None) -> GenerationConfig:
    from transformers import GenerationConfig

    from lynx_exp.models import locate

    try:
        return GenerationConfig.from_pretrained(locate(name), revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"task.generation=model: model.id={name} has no generation_config.json that can be read: "
            f"{first_line(error)}"
        ) from error


def _think_end(config: Config) -> ThinkEnd | None:
    from lynx_exp.tasks.thinking import find_think_end

    model, task = config.model, config.task
    marker = "auto" if task.think_end is None and task.thinking else task.think_end
    if marker is None:
        return None
    if model.kind == "random":
        raise ValueError(f"task.think_end={marker}: random weights have no tokenizer, and so no text to end a thought")
    if is_declared(config):
        return None  # nothing of a plan hangs on it
    tokenizer = tokenizer_of(model)
    return find_think_end(tokenizer, marker, opened=task.thinking is not False)


def _chat_template(config: Config) -> ChatTemplate:
    from lynx_exp.tasks.chat import ChatTemplate
    from lynx_exp.tasks.thinking import thinking_flag

    model = config.model
    if model.kind == "random":
        raise ValueError("task.apply_chat_template=true: random weights have no tokenizer, and so no chat template")
    if is_declared(config):
        return declared_template(config)
    tokenizer = tokenizer_of(model)
    arguments = dict(config.task.chat_template_args)
    if config.task.thinking is not None:
        asked = f"task.thinking={str(config.task.thinking).lower()}"
        arguments[thinking_flag(tokenizer, asked=asked, whose=model.id)] = config.task.thinking
    return ChatTemplate.of(tokenizer, arguments)


def tokenizer_of(model: ModelConfig) -> PreTrainedTokenizerBase:
    """ValueError, in one line, where it does not load."""
    return _tokenizer(model.id, model.revision, model.trust_remote_code)


@cache
def _tokenizer(name: str, revision: str | None, trust: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    from lynx_exp.models import locate

    try:
        return AutoTokenizer.from_pretrained(locate(name), revision=revision, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ValueError(
            f"model.id={name}: its tokenizer, which the task's turns and thoughts need, does not load: {reason}"
        ) from error


def sandbox_of(config: Config) -> Sandbox:
    """Where the config wants generated code to run. ValueError if this machine cannot give that."""
    from lynx_exp.tasks.run_programs import open_sandbox

    return open_sandbox(config.sandbox, confirm_unsafe_code=config.confirm_unsafe_code)


def revisions(tasks: Sequence[EvalTask | MixedTask]) -> dict[str, str | None]:
    """Of each task whose documents came from the hub, the commit of its data set."""
    return {member.name: member.revision for task in tasks for member in task.members if member.revision is not None}
