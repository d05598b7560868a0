from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import pytest

from lynx_exp.tasks import EvalTask, load_task
from lynx_exp.tasks.mini import held_out
from lynx_exp.tasks.mini.item import Item

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROWS = {"mini_truthfulqa_gen": "mini_truthfulqa", "mini_truthfulqa_mc1": "mini_truthfulqa"}


@pytest.fixture(scope="session")
def task() -> Callable[[str, int | None], EvalTask]:
    """Tasks by name and limit."""
    return lambda name, limit: load_task(name, limit=limit)


@pytest.fixture(scope="session")
def items() -> Callable[[str], list[Item]]:
    """The held-out items behind a task name."""
    return cache(lambda name: held_out(ROWS.get(name, name)))
