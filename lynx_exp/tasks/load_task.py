"""A task by name, asked as its settings say. lm-eval is imported only when a task is loaded."""

from __future__ import annotations

import io
import logging
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.tasks.cached import at_revision, hub_revision
from lynx_exp.tasks.data import HUB, LocalData, ModelUnavailable, check_texts, has_samples, not_cached, with_local_data
from lynx_exp.tasks.definition import find_definition, mini_tasks, read_definition
from lynx_exp.tasks.request_cache import cache_path, read_cached, write_cached
from lynx_exp.tasks.task import BuiltTask, EvalTask, TaskSpec
from lynx_exp.tasks.task_settings import TaskSettings
from lynx_exp.tasks.yaml_definition import TaskDefinition

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def load_task(name: str, *, limit: int | None = None, settings: TaskSettings | None = None) -> EvalTask:
    """The task called `name` (one that lm-eval knows, or a task's YAML file), cut to its first `limit` documents (None:
    all), asked as `settings` say (None: as its definition says).

    ValueError for an unknown name, a limit below 1, documents that are not there or do not fit, or settings that the
    task does not take.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit}, must be at least 1, or null for every document")
    path = find_definition(name)
    return _load(path, limit, settings or TaskSettings())


@cache
def _load(path: Path, limit: int | None, settings: TaskSettings) -> EvalTask:
    """Kept for the process: a sweep asks for the same few tasks in every cell, and scoring changes nothing in them."""
    path_in_cache = cache_path(path, limit, settings)
    cached = None if path_in_cache is None else read_cached(path_in_cache)
    if cached is not None:
        return EvalTask(cached, lambda: _built_task(path, limit, settings))
    built = _built_task(path, limit, settings)
    if path_in_cache is not None:
        write_cached(path_in_cache, built.spec)
    return EvalTask(built.spec, lambda: built)


def _built_task(path: Path, limit: int | None, settings: TaskSettings) -> BuiltTask:
    from lynx_exp.tasks.mathematics import scored_elsewhere

    with _quiet(), _seeded():
        config = _with_shots(read_definition(path), settings)
        name = config["task"]
        local = settings.data != HUB and name not in mini_tasks()
        if local:
            config = with_local_data(config, settings.data)
            documents = config["custom_dataset"]
            assert isinstance(documents, LocalData)
            check_texts(config, documents)
        elif config.get("dataset_path"):
            config = at_revision(config, settings.revision)
        with _errors_in_one_line(name, config, settings.data if local else HUB):
            task = _built(config, limit, settings)
    revision = None if local or not config.get("dataset_path") else hub_revision(task.dataset)
    return BuiltTask(task=task, spec=TaskSpec.of(task, revision, settings.think_end), process=scored_elsewhere(path))


def _built(config: TaskDefinition, limit: int | None, settings: TaskSettings) -> ConfigurableTask:
    from lm_eval.api.task import ConfigurableTask

    if not config.get("num_fewshot") and config.get("dataset_path") and not has_samples(config):
        # lm-eval lists all documents that examples could come from, millions of them in WMT16, even to take none
        config["fewshot_split"] = config.get("test_split") or config.get("validation_split")
    task = ConfigurableTask(config=config)
    if task.OUTPUT_TYPE not in ("generate_until", "multiple_choice"):
        raise ValueError(
            f"task {config['task']}: its requests are {task.OUTPUT_TYPE}; only generations and choices run"
        )
    if settings.thinking and task.OUTPUT_TYPE == "multiple_choice":
        raise ValueError(
            f"task.thinking=true: {config['task']} asks for likelihoods of choices, which leave no room for a thought; "
            "give a task that generates"
        )
    if task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", settings.generation(), update=True)
        task.set_config("repeats", settings.repeats or task.config.repeats)
    task.set_fewshot_seed(settings.fewshot_seed)
    task.build_all_requests(
        limit=limit,
        system_instruction=settings.system_instruction,
        apply_chat_template=settings.chat is not None,
        fewshot_as_multiturn=settings.fewshot_as_multiturn and settings.chat is not None,
        chat_template=settings.chat,
    )
    return task


def _with_shots(config: TaskDefinition, settings: TaskSettings) -> TaskDefinition:
    """The definition with as many examples as asked, by the rules of lm-eval's command line."""
    name = config["task"]
    if settings.num_fewshot is not None:
        if config.get("num_fewshot") == 0 and settings.num_fewshot != 0:
            raise ValueError(
                f"task.num_fewshot={settings.num_fewshot}: {name} is defined without examples; leave it null"
            )
        config["num_fewshot"] = settings.num_fewshot
    config["num_fewshot"] = config.get("num_fewshot") or 0
    return config


@contextmanager
def _errors_in_one_line(name: str, config: TaskDefinition, data: str) -> Iterator[None]:
    """What goes wrong with a task's documents, in one line."""
    from jinja2 import UndefinedError

    try:
        yield
    except (UndefinedError, KeyError) as error:
        missing = error.args[0] if error.args else error
        raise ValueError(f"task.data={data}: its documents lack a field that {name} asks for: {missing}") from error
    except Exception as error:
        line = _few(error, name, config, data)
        if line is None and data == HUB:
            line = not_cached(error, _hub_name(config))
            if line is not None:
                raise ModelUnavailable(line) from error
        if line is None:
            message = " ".join(str(error).split())[:300]
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            where = f"task.data={data}: {name} cannot be asked of its documents" if data != HUB else f"task {name}"
            line = message if message.startswith("task") else f"{where}: {kind}{message}"
        raise ValueError(line) from error


def _few(error: Exception, name: str, config: TaskDefinition, data: str) -> str | None:
    """The line to say where lm-eval found fewer examples than it should show."""
    if not re.search("larger than population|number of fewshot samples", str(error)):
        return None
    shots = f"task.num_fewshot={config['num_fewshot']}"
    return f"{shots}: task.data={data} has too few documents to take {name}'s examples from"


def _hub_name(config: TaskDefinition) -> str:
    parts = (config.get("dataset_path"), config.get("dataset_name"))
    return " ".join(part for part in parts if part)


@contextmanager
def _seeded() -> Iterator[None]:
    """With Python's random numbers from lm-eval's own seed, 0: a definition may draw from them (GPQA shuffles its
    choices), and must ask the same wherever it is loaded. Whoever draws outside goes on as before."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of lm-eval and of its libraries on defaults, and without their progress bars."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
