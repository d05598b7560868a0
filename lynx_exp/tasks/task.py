"""An evaluation task in three independent stages: requests, responses and scores.

Requests and scores are lm-eval's; responses may come from any backend. `lynx_exp.run` encodes the requests, commits the
responses to disk and scores them from there, so that scoring can be repeated without a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from numbers import Real
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from lynx_exp.tasks.code import CodeRun, code_run
from lynx_exp.tasks.definition import HEADLINES
from lynx_exp.tasks.process import Doc, MetricValues, Process
from lynx_exp.tasks.repeated import keeps_one, one_by_one, together
from lynx_exp.tasks.rouge import no_bootstrap_of_one
from lynx_exp.tasks.task_records import Metric, Responses, SampleScore, Scores, TaskRequest
from lynx_exp.tasks.task_settings import Generation

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    from lynx_exp.engine.requests.thoughts import ThinkEnd
    from lynx_exp.tasks.run_programs import Sandbox

Results: TypeAlias = dict[tuple[str, str], list[object]]
"""(metric, filter) -> one value per document"""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """Everything about a task that is needed before scoring. It can be cached, because it holds no lm-eval objects."""

    name: str
    kind: Literal["generate", "choice"]
    repeats: int
    headline: str
    runs_code: bool
    """Whether scoring executes code that the model wrote."""
    revision: str | None
    """Revision of the data set on the hub."""
    data_digest: str
    """Hash of all that determines requests and scores: documents, prompts, examples, settings."""
    requests: tuple[TaskRequest, ...]

    @classmethod
    def of(cls, task: ConfigurableTask, revision: str | None = None, think_end: ThinkEnd | None = None) -> TaskSpec:
        """Describe an lm-eval task.

        Args:
            task: lm-eval's task, which must have built its requests.
            revision: Revision of its data set on the hub.
            think_end: What ends a thought; used by generate tasks only.
        """
        name = task.config.task
        kind: Literal["generate", "choice"] = "choice" if task.OUTPUT_TYPE == "multiple_choice" else "generate"
        repeats = max(1, task.config.repeats or 1) if kind == "generate" else 1
        return cls(
            name=name,
            kind=kind,
            repeats=repeats,
            headline=HEADLINES.get(name, next(iter(task._metric_fn_list))),
            runs_code=bool(getattr(task, "UNSAFE_CODE", False)),
            revision=revision,
            data_digest=_digest(task, task.instances),
            requests=tuple(
                replace(_request(instance), subtask=name, think_end=think_end if kind == "generate" else None)
                for instance in task.instances
                for _ in range(repeats)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class BuiltTask:
    """An lm-eval task that has built its requests, which scoring needs."""

    task: ConfigurableTask
    spec: TaskSpec
    process: Process | None = None
    """A replacement for the task's own scoring of filtered responses; None keeps that."""


class EvalTask:
    """One lm-eval task: its prompts, filters, metrics and aggregation. The caller batches and generates."""

    fillers: tuple[TaskRequest, ...] = ()
    """Requests of further documents, which may fill up a batch and are not scored."""
    fillers_digest: str | None = None
    """Hash of all that determines the fillers; None: there are none."""

    def __init__(self, spec: TaskSpec, make: Callable[[], BuiltTask]) -> None:
        """`make` builds lm-eval's task when it is first needed, for scoring. It must yield the requests of `spec`."""
        self._make = make
        self.name, self.kind, self.repeats = spec.name, spec.kind, spec.repeats
        self.headline, self.runs_code, self.revision = spec.headline, spec.runs_code, spec.revision
        self.requests = spec.requests
        self._spec_digest = spec.data_digest
        self.data_digest = hashlib.sha256(f"{spec.data_digest} {spec.requests!r}".encode()).hexdigest()
        """Hash of all that determines requests and scores, and of the requests themselves: a stale cache of requests
        then has another hash."""
        docs = [request.doc_id for request in self.requests]
        self._starts = [at for at, doc in enumerate(docs) if at == 0 or doc != docs[at - 1]]
        """Index of the first request of each document."""

    @cached_property
    def _built_task(self) -> BuiltTask:
        built = self._make()
        if built.spec.data_digest != self._spec_digest or built.spec.requests != self.requests:
            raise ValueError(f"task {self.name}: has changed since this run began; run it again")
        # lm-eval renders its target template at every call, and each cell of a sweep would pay for it again
        built.task.doc_to_target = _once_a_document(built.task.doc_to_target)
        return built

    @property
    def _task(self) -> ConfigurableTask:
        return self._built_task.task

    @property
    def _instances(self) -> Sequence[Instance]:
        return self._built_task.task.instances

    @property
    def process(self) -> Process:
        """The function that computes the metrics of documents from their filtered responses."""
        return self._built_task.process or self._process_each

    @property
    def members(self) -> tuple[EvalTask, ...]:
        """The task itself. `MixedTask` has several."""
        return (self,)

    @property
    def lm_eval_task(self) -> ConfigurableTask:
        """lm-eval's task, built on first use."""
        return self._task

    def score(self, responses: Responses, *, sandbox: Sandbox | None = None) -> Scores:
        """Filter, score and aggregate responses as lm-eval does. The result depends on the responses only.

        Args:
            responses: One per request, in order.
            sandbox: Where generated code runs, if the task runs any; None opens one when it is needed.

        Returns:
            The scores of each document and of the whole task.

        Raises:
            ValueError: The number or the kind of the responses does not fit the task.
        """
        self._check(responses)
        n = self.repeats
        instances = [
            replace(instance, resps=list(responses[at * n : (at + 1) * n]), filtered_resps={})
            for at, instance in enumerate(self._instances)
        ]
        by_doc = [list(group) for _, group in groupby(instances, key=lambda instance: instance.doc_id)]
        with code_run(sandbox) as run, no_bootstrap_of_one():
            for ensemble in self._task._filters:
                ensemble.apply(instances)
            filters = list(instances[0].filtered_resps)
            results: Results = {}
            each_of: dict[str, list[list[MetricValues]]] = {}
            for filter_name in filters:
                values, each_of[filter_name] = self.values(by_doc, filter_name)
                for of_doc_values in values:
                    for metric, value in of_doc_values.items():
                        results.setdefault((metric, filter_name), []).append(value)
            # a task may compute other metrics than its definition declares; then the first computed one is reported
            first = next(iter(results))[0] if (self.headline, filters[0]) not in results else self.headline
            headline = (first, filters[0])
            samples = [self._sample(i, of_doc, results, headline, run) for i, of_doc in enumerate(by_doc)]
            each = each_of[headline[1]]
            if each and samples[0].score is not None:
                samples = [
                    replace(sample, repeat_scores=tuple(float(str(values[first])) for values in of_doc))
                    for sample, of_doc in zip(samples, each, strict=True)
                ]
            return Scores(samples=samples, metrics=list(self._metrics(results, headline)))

    @cached_property
    def scores_each(self) -> bool:
        """Whether several responses to a document are scored separately, instead of lm-eval's keeping the first."""
        return self.repeats > 1 and keeps_one(self._task._filters)

    def values(
        self, by_doc: Sequence[Sequence[Instance]], filter_name: str
    ) -> tuple[list[MetricValues], list[list[MetricValues]]]:
        """Compute the metrics of each document after a filter.

        Args:
            by_doc: The instances of each document, to which the filter was applied.
            filter_name: Name of the filter.

        Returns:
            The metrics of each document, and those of each of its responses if they are scored separately, else [].
        """
        docs = [of_doc[0].doc for of_doc in by_doc]
        if not self.scores_each:
            filtered = [[instance.filtered_resps[filter_name] for instance in of_doc] for of_doc in by_doc]
            return self.process(docs, filtered), []
        n = self.repeats
        alone = [instance for of_doc in by_doc for instance in one_by_one(of_doc)]
        # the filter ran over all responses of a document and kept one; here it sees each response by itself
        next(ensemble for ensemble in self._task._filters if ensemble.name == filter_name).apply(alone)
        values = self.process(
            [instance.doc for instance in alone], [[instance.filtered_resps[filter_name]] for instance in alone]
        )
        each = [values[at : at + n] for at in range(0, len(values), n)]
        return together(each), each

    def _process_each(self, docs: Sequence[Doc], filtered: Sequence[list[object]]) -> list[MetricValues]:
        from lynx_exp.tasks.code import current_run

        run = current_run()

        def process_all() -> list[MetricValues]:
            values = []
            for number, (doc, responses) in enumerate(zip(docs, filtered, strict=True)):
                run.doc = (number, doc)
                values.append(self._task.process_results(doc, responses))
            return values

        # a first pass only collects the generated programs; they run together, and a second pass uses their verdicts
        return list(run.process(process_all)) if self.runs_code else process_all()

    def _check(self, responses: Responses) -> None:
        if len(responses) != len(self.requests):
            raise ValueError(f"responses: {len(responses)} of them, {self.name} has {len(self.requests)} requests")
        for number, response in enumerate(responses):
            if isinstance(response, str) != (self.kind == "generate"):
                expected = "a text" if self.kind == "generate" else "a (log-likelihood, is greedy) pair"
                raise ValueError(f"responses[{number}]: {response!r}, {self.name} needs {expected}")

    def _metrics(self, results: Results, headline: tuple[str, str]) -> Iterator[Metric]:
        aggregations, directions = self._task.aggregation(), self._task.higher_is_better()
        for (metric, filter_name), values in results.items():
            yield Metric(
                subtask=self.name,
                metric=metric,
                filter=filter_name,
                value=float(aggregations.get(metric, _mean)(values)),
                higher_is_better=bool(directions.get(metric, True)),
                headline=(metric, filter_name) == headline,
                corpus=not isinstance(values[0], Real),
                samples=len(values),
            )

    def _sample(
        self,
        number: int,
        of_doc: list[Instance],
        results: Results,
        headline: tuple[str, str],
        run: CodeRun,
    ) -> SampleScore:
        doc, responses = of_doc[0].doc, [instance.filtered_resps[headline[1]] for instance in of_doc]
        target, filtered, request = self._task.doc_to_target(doc), responses[0], self._starts[number]
        if self.kind == "choice":
            choices = self._task.doc_to_choice(doc)
            best = max(range(len(choices)), key=lambda choice: responses[choice][0])
            target, filtered = choices[target] if isinstance(target, int) else target, choices[best]
            request = self._starts[number] + best
        if isinstance(filtered, list) and len(filtered) == 1:  # some filters return a list of all responses
            filtered = filtered[0]
        scores = {
            ",".join(key): float(value) for key, values in results.items() if isinstance(value := values[number], Real)
        }
        programs = range(number * self.repeats, (number + 1) * self.repeats) if self.scores_each else (number,)
        reasons = [reason for program in programs for reason in run.reasons(program)]
        return SampleScore(
            doc_id=of_doc[0].doc_id,
            target=target if isinstance(target, str) else json.dumps(target),
            filtered=json.dumps(filtered) if isinstance(filtered, list) else str(filtered),
            score=scores.get(",".join(headline)),
            scores=scores,
            request=request,
            verdict=None if not reasons else reasons[0] if len(reasons) == 1 else json.dumps(reasons),
            sandbox=run.record if reasons else None,
            subtask=self.name,
        )


def _digest(task: ConfigurableTask, instances: Sequence[Instance]) -> str:
    """sha256 of the documents, their requests and the version of the task's definition."""
    total = hashlib.sha256(json.dumps([task.config.task, str(task.VERSION), task.config.repeats]).encode())
    for instance in instances:
        hashed = [instance.doc_id, instance.doc, instance.arguments]
        total.update(json.dumps(hashed, sort_keys=True, default=str).encode())
    return total.hexdigest()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _once_a_document(function: Callable[..., T]) -> Callable[..., T]:
    """Cache a function's result for each document. A document must live as long as the cache, whose key is its id()."""
    cache: dict[int, tuple[object, T]] = {}

    def cached(doc: object, *more: object) -> T:
        if more:
            return function(doc, *more)
        if id(doc) not in cache:
            cache[id(doc)] = doc, function(doc)
        return cache[id(doc)][1]

    return cached


def _request(instance: Instance) -> TaskRequest:
    prompt, *rest = instance.arguments
    if instance.request_type == "loglikelihood":
        return TaskRequest(doc_id=instance.doc_id, prompt=prompt, continuation=rest[0])
    settings = Generation.of(rest[0], f"task {instance.task_name}: generation_kwargs.")
    return settings.request(instance.doc_id, prompt)
