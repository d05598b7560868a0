"""JSON files of a cell, as types: `forms` says of each what a reader checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict


class PlanEntry(TypedDict):
    """Of plan.json: the lanes of one subtask."""

    lanes: Sequence[Sequence[int]]
    """Numbers of its requests, lane by lane."""
    digest: str
    batch_size: int
    batching: str
    seed: int
    tail: NotRequired[str]
    plan_seed: NotRequired[int]
    fillers: NotRequired[Sequence[Sequence[int]]]
    """Of each lane."""


Plan = Mapping[str, PlanEntry]
"""By subtask."""


class MetricEntry(TypedDict):
    """Of metrics.json: one metric of one subtask, as `lynx_exp.tasks.Metric` has it."""

    subtask: str
    metric: str
    filter: str
    value: float | None
    """None: no finite number."""
    higher_is_better: bool
    headline: bool
    corpus: bool
    samples: int


class CellInfo(TypedDict, total=False):
    """cell.json. Older cells lack some of it."""

    schema: int
    cell_id: str
    pair_id: str
    sizes_id: str
    study: str
    model: str
    num_experts: int
    top_k: int
    num_layers: int
    policy: str
    policy_params: dict[str, object]
    match_active: float | None
    layers: str | None
    policy_label: str
    phases: str
    task: str
    mixing: str | None
    batch_size: int
    batching: str
    waves: int | None
    tail: str
    choices: str
    plan_seed: int
    scoring: str
    limit: int | None
    seed: int
    backend: str
    dtype: str
    device: str


class Done(TypedDict):
    """DONE."""

    files: dict[str, str]
    """Of each file of the cell its sha256."""
    seen: NotRequired[dict[str, list[int]]]
    """Its size in bytes and its time in ns."""
    seen_sha256: NotRequired[str]
    """Of `seen`, as JSON."""


ErrorEntry = TypedDict(
    "ErrorEntry",
    {"kind": str | None, "class": str | None, "message": str | None, "where": str | None},
    total=False,
)
"""Of status.json: why an attempt ended. (`class` cannot be a field of a class.)"""


class AttemptEntry(TypedDict, total=False):
    """Of status.json: an earlier attempt."""

    attempt: int | None
    state: str | None
    kind: str | None
    started: str | None
    seconds: float | None
    lanes: int | None


class CellStatus(TypedDict, total=False):
    """status.json. Older cells lack some of it."""

    state: str
    error: ErrorEntry | None
    invalid: list[str]
    notes: list[str]
    attempt: int
    attempts: list[AttemptEntry]
    failures: int
    lanes: int
    together: int
    started: str
    finished: str | None
    seconds: float | None
    steps: dict[str, object]
