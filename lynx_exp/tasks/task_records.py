"""What goes into and out of an evaluation task: requests, responses, scores and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from lynx_exp.engine.requests.thoughts import ThinkEnd

Responses: TypeAlias = Sequence[str] | Sequence[tuple[float, bool]]
"""Texts of a generate task, or (log-likelihood in nats, greedy) pairs of a choice task; one per request."""


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """One prompt to answer, with all that decides how it is answered."""

    doc_id: int
    """Index of the document in the data; the requests of one document are adjacent."""
    prompt: str
    continuation: str | None = None
    """Choice tasks only: the text to score after the prompt, with its leading space."""
    until: tuple[str, ...] = ()
    """Strings that end a generation; the backend adds the end-of-sequence token."""
    max_new_tokens: int = 0
    """Maximum number of tokens to generate; 0 for a choice."""
    temperature: float = 0.0
    """0: greedy, and `top_p` and `top_k` have no effect."""
    top_p: float | None = None
    top_k: int | None = None
    processing: tuple[tuple[str, object], ...] = ()
    """Further changes of the logits before a token is chosen: generation settings of transformers by name."""
    subtask: str = ""
    """Name of the lm-eval task to which the request belongs."""
    think_end: ThinkEnd | None = None
    """What ends a thought in the response; None: the response has no thoughts."""


@dataclass(frozen=True, kw_only=True)
class SampleScore:
    """The scores of one document."""

    doc_id: int
    target: str
    filtered: str
    """The response after the filter of the headline metric; for a choice task, the text of the choice."""
    score: float | None
    """The headline metric of this document; None for a metric that exists only for a whole corpus (BLEU)."""
    scores: dict[str, float]
    """Every per-document metric, keyed `metric,filter`."""
    request: int = 0
    """Index of the request that `filtered` comes from: the only one, the first of several, or the chosen one."""
    repeat_scores: tuple[float, ...] | None = None
    """The headline metric of each response, where several were scored separately; `score` is their mean, and their
    requests start at `request`."""
    verdict: str | None = None
    """The outcome of the document's generated programs: one reason, or a JSON list; None if no code ran."""
    sandbox: str | None = None
    """The sandbox in which they ran: its tier and self-test, as JSON."""
    subtask: str = ""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of a task, after one filter, over all documents."""

    subtask: str
    metric: str
    filter: str
    value: float
    higher_is_better: bool
    headline: bool
    """Whether this is the number reported for the task: the first metric (or that of `HEADLINES`) and filter."""
    corpus: bool
    """Whether it is computed from all responses together (BLEU) instead of averaging scores of documents."""
    samples: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All scores of a task."""

    samples: list[SampleScore]
    metrics: list[Metric]

    @property
    def headline(self) -> Metric:
        """The metric that is reported for the task."""
        return next(metric for metric in self.metrics if metric.headline)
