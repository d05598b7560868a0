"""Schemas of a cell's tables (`lynx_exp.store.table_columns`), and the journal's form of one lane."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pyarrow as pa

from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.row_types import PrefillRow, ResponseRow, StepRow
from lynx_exp.store.table_columns import TABLE_COLUMNS

TABLES = {
    table: pa.schema([(column.name, column.kind) for column in columns]) for table, columns in TABLE_COLUMNS.items()
}
"""By the name of the file, without its ending."""

RESPONSES, STEPS, PREFILL, SAMPLES = (TABLES[name] for name in ("responses", "steps", "prefill", "samples"))
TIMING, BREAKDOWN, TOKENS, FIDELITY = (TABLES[name] for name in ("timing", "breakdown", "tokens", "fidelity"))

OPTIONAL_COLUMNS = {
    table: tuple(column.name for column in columns if column.may_lack) for table, columns in TABLE_COLUMNS.items()
}
"""Columns that older cells, or those of other programs, do not have."""


@dataclass(frozen=True, kw_only=True)
class LaneRecord:
    """What one lane of one subtask left."""

    subtask: str
    lane: int
    rows: Sequence[ResponseRow]
    """One a request, columns of RESPONSES."""
    live_rows: Sequence[int]
    """A decode step."""
    active_experts: Sequence[Sequence[int]]
    """A decode step, a layer."""
    scored_rows: Sequence[int] = field(default_factory=list)
    """A decode step: live rows that are no fillers; empty: all are."""
    changed: Sequence[Sequence[int]] = field(default_factory=list)
    """A decode step, a layer; empty: not counted."""
    prompt_tokens: int = 0
    prompt_changed: Sequence[int] = field(default_factory=list)
    """A layer; empty: no policy acted on prompts."""

    def prefill_rows(self) -> Iterable[PrefillRow]:
        for layer, changed in enumerate(self.prompt_changed):
            yield {
                "subtask": self.subtask,
                "lane": self.lane,
                "layer": layer,
                "tokens": self.prompt_tokens,
                "changed": changed,
            }

    def step_rows(self) -> Iterable[StepRow]:
        rows = zip(self.live_rows, self.scored_rows or self.live_rows, self.active_experts, strict=True)
        for step, (live, scored, layers) in enumerate(rows):
            for layer, active in enumerate(layers):
                yield {
                    "subtask": self.subtask,
                    "lane": self.lane,
                    "step": step,
                    "layer": layer,
                    "live_rows": live,
                    "scored_rows": scored,
                    "active_experts": active,
                    "changed": self.changed[step][layer] if self.changed else None,
                }


def prompt_hash(prompt: str) -> str:
    """As `prompt_hash` of RESPONSES and SAMPLES: 16 hex digits of the SHA-256 of the prompt's text."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def lane_bytes(lane: LaneRecord, plan_digest: str) -> bytes:
    """What the journal holds of it: a line with the hash of the rest, and the lane as JSON, which for a few rows takes
    a third of the time that parquet does."""
    content = {
        "schema": SCHEMA,
        "plan": plan_digest,
        "rows": [[values[name] for name in RESPONSES.names] for values in map(dict, lane.rows)],
        "live_rows": list(lane.live_rows),
        "scored_rows": list(lane.scored_rows),
        "active_experts": [list(layers) for layers in lane.active_experts],
        "changed": [list(layers) for layers in lane.changed],
        "prompt_tokens": lane.prompt_tokens,
        "prompt_changed": list(lane.prompt_changed),
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    return _hash(text) + b"\n" + text


def _hash(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def read_lane(path: Path, subtask: str, lane: int, requests: Sequence[int], plan_digest: str) -> LaneRecord:
    """The lane committed in `path`. ValueError if it is damaged, or belongs to another plan."""
    try:
        head, _, text = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if head != _hash(text):
        raise ValueError(f"{path}: damaged (its hash is another)")
    content = json.loads(text)
    if content.get("plan") != plan_digest or content.get("schema") != SCHEMA:
        raise ValueError(f"{path}: belongs to another batch plan or version")
    rows = [cast(ResponseRow, dict(zip(RESPONSES.names, row, strict=True))) for row in content["rows"]]
    if [row["request"] for row in rows if not row["filler"]] != list(requests):
        raise ValueError(f"{path}: its rows are not those of the plan")
    counted = ("live_rows", "scored_rows", "active_experts", "changed", "prompt_tokens", "prompt_changed")
    return LaneRecord(subtask=subtask, lane=lane, rows=rows, **{name: content[name] for name in counted})
