"""Rows of a cell's tables, as types: what a column means stands in `table_columns`."""

from __future__ import annotations

from typing import TypedDict


class ResponseRow(TypedDict):
    """Of `tables.RESPONSES`."""

    subtask: str
    request: int
    doc_id: int
    lane: int
    slot: int
    prompt_hash: str
    prompt_tokens: int
    new_tokens: int
    entered_step: int
    token_ids: list[int]
    finish_reason: str
    response: str | None
    logprob: float | None
    greedy: bool | None
    filler: bool
    thought: str | None
    thought_tokens: int | None


class StepRow(TypedDict):
    """Of `tables.STEPS`."""

    subtask: str
    lane: int
    step: int
    layer: int
    live_rows: int
    scored_rows: int
    active_experts: int
    changed: int | None


class PrefillRow(TypedDict):
    """Of `tables.PREFILL`."""

    subtask: str
    lane: int
    layer: int
    tokens: int
    changed: int


class SampleRow(TypedDict):
    """Of `tables.SAMPLES`."""

    subtask: str
    doc_id: int
    lane: int
    score: float | None
    scores: str
    repeat_scores: list[float] | None
    target: str
    filtered: str
    request: int
    slot: int
    prompt_hash: str
    response: str | None
    new_tokens: int
    finish_reason: str
    verdict: str | None
    sandbox: str | None


class TimingRow(TypedDict):
    """Of `tables.TIMING`."""

    name: str
    window: int
    subtask: str
    lane: int
    start_step: int
    repeat: int
    step: int
    live_rows: int
    active_experts: float | None
    context: float
    ms: float


class BreakdownRow(TypedDict):
    """Of `tables.BREAKDOWN`."""

    name: str
    repeat: int
    section: str
    ms: float


class FidelityRow(TypedDict):
    """Of `tables.FIDELITY`."""

    subtask: str
    request: int
    doc_id: int
    lane: int
    tokens: int
    kl: float
    agreeing: int
    retained: float
    prompt_tokens: int
    prompt_retained: float
