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
