"""Columns of a cell's tables, and the journal's form of one lane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lynx_exp.store.files import write_parquet
from lynx_exp.store.identity import SCHEMA

RESPONSES = pa.schema(
    [
        ("subtask", pa.string()),
        ("request", pa.int64()),
        ("doc_id", pa.int64()),
        ("lane", pa.int32()),
        ("slot", pa.int32()),
        ("prompt_hash", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("new_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("response", pa.string()),
        ("logprob", pa.float64()),
        ("greedy", pa.bool_()),
    ]
)
"""One row a request. `logprob` (sum over the continuation) and `greedy` only for scored requests."""

STEPS = pa.schema(
    [("subtask", pa.string())] + [(n, pa.int32()) for n in ("lane", "step", "layer", "live_rows", "active_experts")]
)
"""One row a (subtask, lane, decode step, layer)."""

SAMPLES = pa.schema(
    [
        ("subtask", pa.string()),
        ("doc_id", pa.int64()),
        ("lane", pa.int32()),
        ("score", pa.float64()),
        ("scores", pa.string()),
        ("target", pa.string()),
        ("filtered", pa.string()),
    ]
)
"""One row a document. `score`: the headline metric (null for a corpus metric); `scores`: all of them, as JSON."""

TIMING = pa.schema([("name", pa.string()), ("repeat", pa.int32()), ("step", pa.int32()), ("ms", pa.float64())])
"""One row a (name, repeat, step); name is `vanilla` or `policy`, paired by (repeat, step)."""

FIDELITY = pa.schema(
    [
        ("subtask", pa.string()),
        ("request", pa.int64()),
        ("doc_id", pa.int64()),
        ("lane", pa.int32()),
        ("tokens", pa.int32()),
        ("kl", pa.float64()),
        ("agreeing", pa.int32()),
    ]
)
"""One row a request: over the tokens of vanilla's response, the summed KL divergence of the policy's next-token
distributions from vanilla's (nats), and the number of tokens where both have the same most likely one."""

_JOURNAL = RESPONSES.append(pa.field("live_rows", pa.list_(pa.int32()))).append(
    pa.field("active_experts", pa.list_(pa.list_(pa.int32())))
)


@dataclass(frozen=True, kw_only=True)
class LaneRecord:
    """What one lane of one subtask left."""

    subtask: str
    lane: int
    rows: Sequence[dict[str, Any]]
    """One a request, columns of RESPONSES."""
    live_rows: Sequence[int]
    """A decode step."""
    active_experts: Sequence[Sequence[int]]
    """A decode step, a layer."""

    def step_rows(self) -> Iterable[dict[str, Any]]:
        for step, (live, layers) in enumerate(zip(self.live_rows, self.active_experts, strict=True)):
            for layer, active in enumerate(layers):
                yield {
                    "subtask": self.subtask,
                    "lane": self.lane,
                    "step": step,
                    "layer": layer,
                    "live_rows": live,
                    "active_experts": active,
                }


def write_lane(path: Path, lane: LaneRecord, plan_digest: str) -> None:
    """One file, committed in one step; the lane's steps stand in its first row."""
    rows = [dict(row) for row in lane.rows]
    rows[0] |= {"live_rows": list(lane.live_rows), "active_experts": [list(layers) for layers in lane.active_experts]}
    schema = _JOURNAL.with_metadata({"plan": plan_digest, "schema": str(SCHEMA)})
    write_parquet(path, pa.Table.from_pylist(rows, schema=schema))


def read_lane(path: Path, subtask: str, lane: int, requests: Sequence[int], plan_digest: str) -> LaneRecord:
    """The lane committed in `path`. ValueError if it is damaged, or belongs to another plan."""
    try:
        table = pq.read_table(path)
        rows = table.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if metadata.get("plan") != plan_digest or metadata.get("schema") != str(SCHEMA):
        raise ValueError(f"{path}: belongs to another batch plan or version")
    if not table.schema.equals(_JOURNAL) or [row["request"] for row in rows] != list(requests):
        raise ValueError(f"{path}: its rows are not those of the plan")
    live_rows, active = rows[0]["live_rows"], rows[0]["active_experts"]
    rows = [{name: row[name] for name in RESPONSES.names} for row in rows]
    return LaneRecord(subtask=subtask, lane=lane, rows=rows, live_rows=live_rows, active_experts=active)
