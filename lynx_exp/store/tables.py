"""Columns of a cell's tables, and the journal's form of one lane."""

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
        ("entered_step", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("response", pa.string()),
        ("logprob", pa.float64()),
        ("greedy", pa.bool_()),
        ("filler", pa.bool_()),
    ]
)
"""One row a request that is scored, and one a lane and request that filled it behind its own (`filler`: the response of
such a one is kept, perhaps `cut`, and never scored; another lane may score the same request). `logprob` (sum over the
continuation) and `greedy` only for scored choices.
`entered_step`: the lane's decode step that is the first to feed one of its tokens; with n `token_ids` it is live in
n - 1 steps from there on."""

STEPS = pa.schema(
    [("subtask", pa.string())]
    + [(n, pa.int32()) for n in ("lane", "step", "layer", "live_rows", "scored_rows", "active_experts", "changed")]
)
"""One row a (subtask, lane, decode step, layer). `live_rows`: fillers included; `scored_rows`: without. `changed`:
assignments of the live rows (top-k each) that the policy changed: experts that the router chose and that did not run
for the row."""

PREFILL = pa.schema([("subtask", pa.string())] + [(n, pa.int32()) for n in ("lane", "layer", "tokens", "changed")])
"""One row a (subtask, lane, layer) of a policy that acts on prompts: their tokens, and of these `changed` as above."""

SAMPLES = pa.schema(
    [
        ("subtask", pa.string()),
        ("doc_id", pa.int64()),
        ("lane", pa.int32()),
        ("score", pa.float64()),
        ("scores", pa.string()),
        ("target", pa.string()),
        ("filtered", pa.string()),
        ("request", pa.int64()),
        ("slot", pa.int32()),
        ("prompt_hash", pa.string()),
        ("response", pa.string()),
        ("new_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("verdict", pa.string()),
        ("sandbox", pa.string()),
    ]
)
"""One row a document. `score`: the headline metric (null for a corpus metric); `scores`: all of them, as JSON. From
`request` on: of the request whose response was scored (of choices the one chosen, of repeats the first). `verdict`:
what became of generated code; `sandbox`: where it ran, tier and self-test as JSON."""

TIMING = pa.schema(
    [
        ("name", pa.string()),
        ("window", pa.int32()),
        ("subtask", pa.string()),
        ("lane", pa.int32()),
        ("start_step", pa.int32()),
        ("repeat", pa.int32()),
        ("step", pa.int32()),
        ("live_rows", pa.int32()),
        ("active_experts", pa.float64()),
        ("context", pa.float64()),
        ("ms", pa.float64()),
    ]
)
"""One row a (name, window, repeat, step); name is `vanilla` or `policy`, paired by the three others. Step s of a window
is step `start_step` + s of its lane. `active_experts`: mean over layers; `context`: positions that a row attends to,
mean over rows. `vanilla prefill` and `policy prefill` are whole prefills of the prompts of window 0, step 0."""

BREAKDOWN = pa.schema([("name", pa.string()), ("repeat", pa.int32()), ("section", pa.string()), ("ms", pa.float64())])
"""One row a (name, repeat, section) of a decode step: mean over its steps; sections add up to the step."""

TOKENS = pa.schema(
    [
        ("subtask", pa.string()),
        ("request", pa.int64()),
        ("doc_id", pa.int64()),
        ("lane", pa.int32()),
        ("step", pa.int32()),
        ("layer", pa.int32()),
        ("kl", pa.float32()),
        ("confidence", pa.float32()),
        ("experts", pa.list_(pa.int16())),
    ]
)
"""One row a (subtask, request, fed token, layer), on vanilla's responses. `step`: the lane's decode step; `kl`: of the
next-token distribution after it, KL(vanilla || policy) in nats, the same in every layer; `confidence`: variance of the
router's normalised probabilities, in vanilla's pass; `experts`: what ran."""

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


TABLES = {
    "responses": RESPONSES,
    "steps": STEPS,
    "prefill": PREFILL,
    "samples": SAMPLES,
    "timing": TIMING,
    "breakdown": BREAKDOWN,
    "tokens": TOKENS,
    "fidelity": FIDELITY,
}
"""By the name of the file, without its ending."""

OPTIONAL_COLUMNS = {
    "responses": ("logprob", "greedy", "entered_step", "token_ids", "filler"),
    "steps": ("changed", "scored_rows"),
    "samples": ("request", "slot", "prompt_hash", "response", "new_tokens", "finish_reason", "verdict", "sandbox"),
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
