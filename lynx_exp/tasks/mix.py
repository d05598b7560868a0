"""Several tasks as one stream of requests, whose lanes they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import floor
from typing import TYPE_CHECKING, Literal

from lynx_exp.tasks.task import EvalTask
from lynx_exp.tasks.task_records import Responses, Scores, TaskRequest

if TYPE_CHECKING:
    from lynx_exp.tasks.run_programs import Sandbox


class MixedTask:
    """Asked and answered as one task, scored as several. The requests of each stand together, in the order given; who
    shares a lane is the batch plan's to say."""

    kind: Literal["generate"] = "generate"
    fillers: tuple[TaskRequest, ...] = ()
    fillers_digest: str | None = None
    """As of `EvalTask`."""

    def __init__(self, name: str, tasks: Sequence[EvalTask]) -> None:
        """ValueError for a task of choices: those are scored along given continuations, not decoded."""
        for task in tasks:
            if task.kind != "generate":
                raise ValueError(f"task.subtasks: {task.name} scores choices; a mix takes tasks that generate")
        self.name, self.members = name, tuple(tasks)
        self.runs_code = any(task.runs_code for task in tasks)
        digests = json.dumps([[task.name, task.data_digest] for task in tasks])
        self.data_digest = hashlib.sha256(digests.encode()).hexdigest()
        self.requests = tuple(request for task in tasks for request in task.requests)

    def score(self, responses: Responses, *, sandbox: Sandbox | None = None) -> Scores:
        """As of each task. A sample's `request` counts in the stream."""
        if len(responses) != len(self.requests):
            raise ValueError(f"responses: {len(responses)} of them, {self.name} has {len(self.requests)} requests")
        whole, start = Scores(samples=[], metrics=[]), 0
        for task in self.members:
            end = start + len(task.requests)
            scores = task.score(responses[start:end], sandbox=sandbox)
            whole.samples.extend(replace(sample, request=sample.request + start) for sample in scores.samples)
            whole.metrics.extend(scores.metrics)
            start = end
        return whole


def shares(weights: Sequence[float], documents: int) -> list[int]:
    """Documents of each task where the heaviest has `documents`; at least 1."""
    return [max(1, floor(documents * weight / max(weights) + 0.5)) for weight in weights]


def mix(
    name: str, load: Callable[[int, int | None], EvalTask], weights: Sequence[float], limit: int | None
) -> MixedTask:
    """`load(number, limit)` gives a task. The heaviest has `limit` documents (None: all), the others in proportion; a
    task that has fewer than its share shortens all."""
    if limit is None:
        whole = [_documents(load(number, None)) for number in range(len(weights))]
        limit = min(floor(count * max(weights) / weight + 1e-9) for count, weight in zip(whole, weights, strict=True))
    counts = shares(weights, max(1, limit))
    return MixedTask(name, [load(number, count) for number, count in enumerate(counts)])


def _documents(task: EvalTask) -> int:
    return len({request.doc_id for request in task.requests})
