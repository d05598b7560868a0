"""Tasks: what to ask a model, and how its answers are scored; nothing here needs a model."""

from __future__ import annotations

from lynx_exp.tasks.definition import known_tasks, mini_tasks
from lynx_exp.tasks.load_task import load_task
from lynx_exp.tasks.run_programs import ExecutionError, Program, Verdict, run_programs
from lynx_exp.tasks.task import EvalTask
from lynx_exp.tasks.task_records import Metric, SampleScore, Scores, TaskRequest
from lynx_exp.tasks.task_settings import TaskSettings

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
