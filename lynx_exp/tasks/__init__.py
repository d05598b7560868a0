"""Tasks: what to ask a model, and how its answers are scored; nothing here needs a model."""

from __future__ import annotations

from lynx_exp.tasks.definition import known_tasks, mini_tasks
from lynx_exp.tasks.execute import ExecutionError, Program, Verdict, run_programs
from lynx_exp.tasks.load import load_task
from lynx_exp.tasks.settings import TaskSettings
from lynx_exp.tasks.task import EvalTask, Metric, SampleScore, Scores, TaskRequest

__all__ = [
    "EvalTask",
    "ExecutionError",
    "Metric",
    "Program",
    "SampleScore",
    "Scores",
    "TaskRequest",
    "TaskSettings",
    "Verdict",
    "known_tasks",
    "load_task",
    "mini_tasks",
    "run_programs",
]
