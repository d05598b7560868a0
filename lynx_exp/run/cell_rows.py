"""From what the engine hands back to the rows of a cell's tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from lynx_exp.run.batch_plan import numbered_requests
from lynx_exp.store.row_types import FidelityRow, ResponseRow, SampleRow
from lynx_exp.store.tables import TOKENS, LaneRecord, prompt_hash

if TYPE_CHECKING:
    from lynx_exp.engine import LaneResult, Request
    from lynx_exp.engine.decoding.tokens import TokenRows
    from lynx_exp.run.planned_cell import Task
    from lynx_exp.tasks import Scores


def lane_record(task: Task, requests: Sequence[Request], result: LaneResult) -> LaneRecord:
    rows, everything = list[ResponseRow](), numbered_requests(task)
    for at, number in enumerate(result.requests):
        task_request = everything[number]
        scored = result.logprobs is not None
        rows.append(
            {
                "subtask": task_request.subtask or task.name,
                "request": number,
                "doc_id": task_request.doc_id,
                "lane": result.lane,
                "slot": result.slots[at] if result.slots else at,
                "prompt_hash": prompt_hash(task_request.prompt),
                "prompt_tokens": len(requests[number].prompt_ids),
                "new_tokens": len(result.token_ids[at]),
                "entered_step": result.entered[at] if result.entered else 0,
                "token_ids": list(result.token_ids[at]),
                "finish_reason": result.finish_reasons[at],
                "response": task_request.continuation if scored else result.texts[at],
                "logprob": result.logprobs[at] if result.logprobs is not None else None,
                "thought": result.thoughts[at] if result.thoughts else None,
                "thought_tokens": result.thought_tokens[at] if result.thought_tokens else None,
                "greedy": result.greedy[at] if result.greedy is not None else None,
                # fillers come last in a lane's results
                "filler": at >= result.own,
            }
        )
    return LaneRecord(
        subtask=task.name,
        lane=result.lane,
        rows=rows,
        live_rows=result.live_rows,
        scored_rows=result.scored_rows or result.live_rows,
        active_experts=result.active_experts,
        changed=result.changed,
        prompt_tokens=result.prompt_tokens,
        prompt_changed=result.prompt_changed,
    )


_OF_REQUEST = ("subtask", "request", "doc_id", "lane")


def token_table(request: FidelityRow, rows: TokenRows) -> pa.Table:
    """Rows of tokens.parquet of one response; `request`: its row of fidelity.parquet."""
    tokens, layers, _ = rows.experts_NLW.shape
    each = [[int(e) for e in slots if e >= 0] for slots in rows.experts_NLW.flatten(0, 1).tolist()]
    columns: dict[str, Sequence[object]] = {
        name: [value] * (tokens * layers) for name, value in request.items() if name in _OF_REQUEST
    }
    columns |= {
        "step": [step for step in rows.steps for _ in range(layers)],
        "layer": list(range(layers)) * tokens,
        "kl": rows.kl_N.repeat_interleave(layers).tolist(),
        "confidence": rows.confidence_NL.flatten().tolist(),
        "experts": each,
    }
    return pa.Table.from_pydict(columns, schema=TOKENS)


def responses_of(task: Task, rows: Sequence[ResponseRow]) -> list[str] | list[tuple[float, bool]]:
    if task.kind == "generate":
        return cast("list[str]", [row["response"] for row in rows])
    return cast("list[tuple[float, bool]]", [(row["logprob"], row["greedy"]) for row in rows])


def sample_rows(task: Task, scores: Scores, responses: Sequence[ResponseRow]) -> list[SampleRow]:
    """`responses`: rows of the responses table, in the order of the requests."""
    rows: list[SampleRow] = []
    for sample in scores.samples:
        of = responses[sample.request]
        rows.append(
            {
                "request": of["request"],
                "lane": of["lane"],
                "slot": of["slot"],
                "prompt_hash": of["prompt_hash"],
                "new_tokens": of["new_tokens"],
                "finish_reason": of["finish_reason"],
                "response": of["response"],
                "subtask": sample.subtask or task.name,
                "doc_id": sample.doc_id,
                "score": sample.score,
                "scores": json.dumps(sample.scores),
                "repeat_scores": None if sample.repeat_scores is None else list(sample.repeat_scores),
                "target": sample.target,
                "filtered": sample.filtered,
                "verdict": sample.verdict,
                "sandbox": sample.sandbox,
            }
        )
    return rows
