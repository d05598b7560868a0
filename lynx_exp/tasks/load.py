"""Tasks by name, from the task definitions in the package. lm-eval is imported only when a task is loaded."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from difflib import get_close_matches
from functools import cache

from lynx_exp.tasks.mini.dataset import FOLDER, data_digest
from lynx_exp.tasks.task import EvalTask

FEWSHOT_SEED = 1234
"""lm-eval's own default."""


def known_tasks() -> tuple[str, ...]:
    """The names that `load_task` takes, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load_task(name: str, *, limit: int | None = None) -> EvalTask:
    """The task called `name`, cut to its first `limit` documents (None: all).

    ValueError for an unknown name (it lists the known ones) or a limit below 1.
    """
    if name not in known_tasks():
        close = get_close_matches(name, known_tasks(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"task: unknown {name!r}{hint} Known tasks: {', '.join(known_tasks())}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit}, must be at least 1, or null for every document")

    return _load(name, limit)


@cache
def _load(name: str, limit: int | None) -> EvalTask:
    """Kept for the process: a sweep asks for the same few tasks in every cell, and scoring changes nothing in them."""
    with _quiet():
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks._yaml_loader import load_yaml

        config = load_yaml(FOLDER / f"{name}.yaml")
        task = ConfigurableTask(config=config)
        task.set_fewshot_seed(FEWSHOT_SEED)
        task.build_all_requests(limit=limit)
    return EvalTask(task, data_digest(config["dataset_kwargs"]["rows"]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's notes on defaults, and without its progress bar over a few hundred prompts."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
