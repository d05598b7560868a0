"""An evaluation task as three separate things: requests to answer, responses from anywhere, scores by lm-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

Responses: TypeAlias = Sequence[str] | Sequence[tuple[float, bool]]
DEFAULT_MAX_NEW_TOKENS = 256
"""What lm-eval generates at most for a task that does not say."""


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


@dataclass(frozen=True, kw_only=True)
class Metric:
    subtask: str
    metric: str
    filter: str
    value: float
    higher_is_better: bool
    headline: bool
    """The one number that stands for the task: the first metric of its definition under its first filter."""
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


class EvalTask:
    """One lm-eval task: its prompts, filters, metrics and aggregation; batching and generation belong to the caller."""

    def __init__(self, task: ConfigurableTask, data_digest: str) -> None:
        """`task` must have built its requests; `data_digest` names the rows that they were built from."""
        # lm-eval compiles its templates anew for every document of every cell
        task.doc_to_target = _once_a_document(task.doc_to_target)
        self._task = task
        self._instances: tuple[Instance, ...] = tuple(task.instances)
        self.name: str = task.config.task
        self.kind: Literal["generate", "choice"] = "choice" if task.OUTPUT_TYPE == "multiple_choice" else "generate"
        self.headline: str = next(iter(task._metric_fn_list))
        self.data_digest = data_digest
        self.requests: tuple[TaskRequest, ...] = tuple(map(_request, self._instances))

    def score(self, responses: Responses) -> Scores:
        """Filter, score and aggregate as lm-eval does. Depends on nothing but the responses, and changes nothing.

        `responses`: one per request, in order; texts for a generate task, (log-likelihood, is greedy) pairs for a
        choice task. ValueError for any other number or kind.
        """
        self._check(responses)
        instances = [
            replace(instance, resps=[response], filtered_resps={})
            for instance, response in zip(self._instances, responses, strict=True)
        ]
        for ensemble in self._task._filters:
            ensemble.apply(instances)
        by_doc = [list(group) for _, group in groupby(instances, key=lambda instance: instance.doc_id)]

        filters = list(instances[0].filtered_resps)
        results: dict[tuple[str, str], list[Any]] = {}  # (metric, filter) -> one entry per document
        for filter_name in filters:
            for of_doc in by_doc:
                filtered = [instance.filtered_resps[filter_name] for instance in of_doc]
                for metric, value in self._task.process_results(of_doc[0].doc, filtered).items():
                    results.setdefault((metric, filter_name), []).append(value)

        headline = (self.headline, filters[0])
        return Scores(
            samples=[self._sample(i, of_doc, results, headline) for i, of_doc in enumerate(by_doc)],
            metrics=list(self._metrics(results, headline)),
        )

    def _check(self, responses: Responses) -> None:
        if len(responses) != len(self.requests):
            raise ValueError(f"responses: {len(responses)} of them, {self.name} has {len(self.requests)} requests")
        for number, response in enumerate(responses):
            if isinstance(response, str) != (self.kind == "generate"):
                expected = "a text" if self.kind == "generate" else "a (log-likelihood, is greedy) pair"
                raise ValueError(f"responses[{number}]: {response!r}, {self.name} needs {expected}")

    def _metrics(self, results: dict[tuple[str, str], list[Any]], headline: tuple[str, str]) -> Iterator[Metric]:
        for (metric, filter_name), values in results.items():
            yield Metric(
                subtask=self.name,
                metric=metric,
                filter=filter_name,
                value=float(self._task.aggregation()[metric](values)),
                higher_is_better=self._task.higher_is_better()[metric],
                headline=(metric, filter_name) == headline,
                corpus=not isinstance(values[0], Real),
                samples=len(values),
            )

    def _sample(
        self,
        number: int,
        of_doc: list[Instance],
        results: dict[tuple[str, str], list[Any]],
        headline: tuple[str, str],
    ) -> SampleScore:
        doc, responses = of_doc[0].doc, [instance.filtered_resps[headline[1]] for instance in of_doc]
        target, filtered = self._task.doc_to_target(doc), responses[0]
        if self.kind == "choice":
            choices = self._task.doc_to_choice(doc)
            best = max(range(len(choices)), key=lambda choice: responses[choice][0])
            target, filtered = choices[target] if isinstance(target, int) else target, choices[best]
        scores = {
            ",".join(key): float(values[number]) for key, values in results.items() if isinstance(values[number], Real)
        }
        return SampleScore(
            doc_id=of_doc[0].doc_id,
            target=target if isinstance(target, str) else json.dumps(target),
            filtered=str(filtered),
            score=scores.get(",".join(headline)),
            scores=scores,
        )


def _once_a_document(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remembers what it gave for a document, which must live as long as the result."""
    known: dict[int, tuple[Any, Any]] = {}

    def remembered(doc: Any, *more: Any) -> Any:
        if more:
            return function(doc, *more)
        if id(doc) not in known:
            known[id(doc)] = doc, function(doc)
        return known[id(doc)][1]

    return remembered


def _request(instance: Instance) -> TaskRequest:
    prompt, second = instance.args
    if instance.request_type == "loglikelihood":
        return TaskRequest(doc_id=instance.doc_id, prompt=prompt, continuation=second)
    until = second.get("until") or ()
    return TaskRequest(
        doc_id=instance.doc_id,
        prompt=prompt,
        until=(until,) if isinstance(until, str) else tuple(until),
        max_new_tokens=int(second.get("max_gen_toks", DEFAULT_MAX_NEW_TOKENS)),
    )
