"""An evaluation task as three separate things: requests to answer, responses from anywhere, scores by lm-eval."""

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
from lynx_exp.tasks.task_settings import Generation

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    from lynx_exp.engine.requests.thoughts import ThinkEnd
    from lynx_exp.tasks.run_programs import Sandbox

Responses: TypeAlias = Sequence[str] | Sequence[tuple[float, bool]]
Results: TypeAlias = dict[tuple[str, str], list[object]]
"""(metric, filter) -> one value per document"""
Given = TypeVar("Given")


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    doc_id: int
    """Number of the document in the data; the requests of one document stand together."""
    prompt: str
    continuation: str | None = None
    """Choice tasks only: the text to score after the prompt, its leading space kept."""
    until: tuple[str, ...] = ()
    """Strings that end a generation; the end-of-sequence token is the backend's to add."""
    max_new_tokens: int = 0
    """Most tokens to generate; 0 for a choice."""
    temperature: float = 0.0
    """0: greedy, and the other two have no effect. None: as the model's generation_config.json says."""
    top_p: float | None = None
    top_k: int | None = None
    processing: tuple[tuple[str, object], ...] = ()
    """What else changes logits before a token is chosen: settings of transformers by name."""
    subtask: str = ""
    """The task that it belongs to."""
    think_end: ThinkEnd | None = None
    """What ends a thought in its response; None: no thoughts are looked for."""


@dataclass(frozen=True, kw_only=True)
class SampleScore:
    doc_id: int
    target: str
    filtered: str
    """The response after the headline's filter; for a choice the text chosen."""
    score: float | None
    """The headline metric of this document alone; None if it exists only for a whole corpus."""
    scores: dict[str, float]
    """Every per-document metric, keyed `metric,filter`."""
    request: int = 0
    """The request whose response `filtered` comes from: the only one, the first of several, the choice made."""
    repeat_scores: tuple[float, ...] | None = None
    """The headline metric of each response where several were scored one by one; `score` is their mean, and their
    requests follow `request`."""
    verdict: str | None = None
    """What became of the document's programs, where generated code was run: one, or a JSON list."""
    sandbox: str | None = None
    """Where they ran: the tier and its self-test, as JSON."""
    subtask: str = ""


@dataclass(frozen=True, kw_only=True)
class Metric:
    subtask: str
    metric: str
    filter: str
    value: float
    higher_is_better: bool
    headline: bool
    """The one number that stands for the task: its definition's first metric (or `HEADLINES`'), its first filter."""
    corpus: bool
    """Computed from all responses together (BLEU), not a mean of per-document scores."""
    samples: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    samples: list[SampleScore]
    metrics: list[Metric]

    @property
    def headline(self) -> Metric:
        return next(metric for metric in self.metrics if metric.headline)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What a task asks: all there is to know of it until its answers are scored."""

    name: str
    kind: Literal["generate", "choice"]
    repeats: int
    headline: str
    runs_code: bool
    """Scoring runs what the model wrote."""
    revision: str | None
    """Of the hub's data set."""
    data_digest: str
    """Of all that makes the requests and their scores: documents, prompts, examples, settings."""
    requests: tuple[TaskRequest, ...]

    @classmethod
    def of(cls, task: ConfigurableTask, revision: str | None = None, think_end: ThinkEnd | None = None) -> TaskSpec:
        """`task` must have built its requests. `think_end`: of those that generate."""
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
    """lm-eval's own task."""

    task: ConfigurableTask
    spec: TaskSpec
    process: Process | None = None
    """In place of the task's own scoring of filtered responses."""


class EvalTask:
    """One lm-eval task: its prompts, filters, metrics and aggregation; batching and generation belong to the caller."""

    fillers: tuple[TaskRequest, ...] = ()
    """Requests of other documents, which may stand beside its own in a batch and are not scored."""
    fillers_digest: str | None = None
    """Of all that makes them; None: there are none."""

    def __init__(self, spec: TaskSpec, make: Callable[[], BuiltTask]) -> None:
        """`make`: called when lm-eval's own is needed, to score, say. It must ask the same."""
        self._make = make
        self.name, self.kind, self.repeats = spec.name, spec.kind, spec.repeats
        self.headline, self.runs_code, self.revision = spec.headline, spec.runs_code, spec.revision
        self.requests = spec.requests
        self._spec_digest = spec.data_digest
        self.data_digest = hashlib.sha256(f"{spec.data_digest} {spec.requests!r}".encode()).hexdigest()
        """Of all that makes the requests and their scores, and of the requests as they are: what a cache holds of them
        cannot pass for something else."""
        docs = [request.doc_id for request in self.requests]
        self._starts = [at for at, doc in enumerate(docs) if at == 0 or doc != docs[at - 1]]
        """The first request of each document."""

    @cached_property
    def _built_task(self) -> BuiltTask:
        made = self._make()
        if made.spec.data_digest != self._spec_digest or made.spec.requests != self.requests:
            raise ValueError(f"task {self.name}: has changed since this run began; run it again")
        # lm-eval compiles its templates anew for every document of every cell
        made.task.doc_to_target = _once_a_document(made.task.doc_to_target)
        return made

    @property
    def _task(self) -> ConfigurableTask:
        return self._built_task.task

    @property
    def _instances(self) -> Sequence[Instance]:
        return self._built_task.task.instances

    @property
    def process(self) -> Process:
        """Values of the metrics of documents, from their filtered responses."""
        return self._built_task.process or self._process_each

    @property
    def members(self) -> tuple[EvalTask, ...]:
        """Itself: what a mix has several of."""
        return (self,)

    @property
    def lm_eval_task(self) -> ConfigurableTask:
        """lm-eval's own."""
        return self._task

    def score(self, responses: Responses, *, sandbox: Sandbox | None = None) -> Scores:
        """Filter, score and aggregate as lm-eval does. Depends on nothing but the responses, and changes nothing.

        `responses`: one per request, in order; texts for a generate task, (log-likelihood, is greedy) pairs for a
        choice task. `sandbox`: where generated code runs, if the task runs any. ValueError for any other number or
        kind.
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
        """Whether several responses to a document are scored one by one."""
        return self.repeats > 1 and keeps_one(self._task._filters)

    def values(
        self, by_doc: Sequence[Sequence[Instance]], filter_name: str
    ) -> tuple[list[MetricValues], list[list[MetricValues]]]:
        """Values of the metrics of each document, behind a filter that was applied; and of each of its responses,
        where those are scored one by one."""
        docs = [of_doc[0].doc for of_doc in by_doc]
        if not self.scores_each:
            filtered = [[instance.filtered_resps[filter_name] for instance in of_doc] for of_doc in by_doc]
            return self.process(docs, filtered), []
        n = self.repeats
        alone = [instance for of_doc in by_doc for instance in one_by_one(of_doc)]
        next(ensemble for ensemble in self._task._filters if ensemble.name == filter_name).apply(alone)
        found = self.process(
            [instance.doc for instance in alone], [[instance.filtered_resps[filter_name]] for instance in alone]
        )
        each = [found[at : at + n] for at in range(0, len(found), n)]
        return together(each), each

    def _process_each(self, docs: Sequence[Doc], filtered: Sequence[list[object]]) -> list[MetricValues]:
        from lynx_exp.tasks.code import current_run

        run = current_run()

        def every() -> list[MetricValues]:
            made = []
            for number, (doc, responses) in enumerate(zip(docs, filtered, strict=True)):
                run.doc = (number, doc)
                made.append(self._task.process_results(doc, responses))
            return made

        return list(run.process(every)) if self.runs_code else every()

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
        if isinstance(filtered, list) and len(filtered) == 1:  # filters that keep every repeat
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
    """sha256 over documents, what is asked of each, and the version of the definition."""
    total = hashlib.sha256(json.dumps([task.config.task, str(task.VERSION), task.config.repeats]).encode())
    for instance in instances:
        asked = [instance.doc_id, instance.doc, instance.arguments]
        total.update(json.dumps(asked, sort_keys=True, default=str).encode())
    return total.hexdigest()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _once_a_document(function: Callable[..., Given]) -> Callable[..., Given]:
    """Remembers what it gave for a document, which must live as long as the result."""
    known: dict[int, tuple[object, Given]] = {}

    def remembered(doc: object, *more: object) -> Given:
        if more:
            return function(doc, *more)
        if id(doc) not in known:
            known[id(doc)] = doc, function(doc)
        return known[id(doc)][1]

    return remembered


def _request(instance: Instance) -> TaskRequest:
    prompt, *rest = instance.arguments
    if instance.request_type == "loglikelihood":
        return TaskRequest(doc_id=instance.doc_id, prompt=prompt, continuation=rest[0])
    asked = Generation.of(rest[0], f"task {instance.task_name}: generation_kwargs.")
    return TaskRequest(
        doc_id=instance.doc_id,
        prompt=prompt,
        until=asked.until,
        max_new_tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        processing=asked.processing,
    )
