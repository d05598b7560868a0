"""Decoding of models without slots (sliding windows, recurrent layers): lanes of one plan start together, padded
on the left, and finished rows leave when they are many.

R rows, T token rows of a forward pass, G lanes, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.lane import Job, Row
from lynx_exp.engine.kv_cache.batch import Batch
from lynx_exp.engine.requests.argmax import most_likely
from lynx_exp.engine.requests.plan import BatchPlan, Request
from lynx_exp.engine.requests.processing import processed
from lynx_exp.engine.requests.results import LaneResult
from lynx_exp.engine.requests.sampling import Draw
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.models import Attachment, Record, Router, Rows, count_active, count_changed

COMPACT_BELOW = 0.75
"""Finished rows leave the physical batch once the live ones are fewer than this share of it: copying the cache is not
free."""


MOST_ROWS = 64
"""Of a pack: its rows start together, and their lengths differ."""


def run_padded(
    model: PreTrainedModel,
    routers: Sequence[Router],
    stopper: Stopper,
    jobs: Sequence[Job],
    *,
    max_rows: int,
    on_step: Callable[[int, int], None],
) -> Iterator[tuple[int, LaneResult]]:
    """One job after the other; (number of the job, lane) for each lane as it completes."""
    for job in jobs:
        if job.plan.slots is not None:
            raise ValueError(
                f"batching=continuous: {type(model).__name__} has a cache whose rows cannot enter at any time; "
                "give batching=static"
            )
    for number, job in enumerate(jobs):
        attachment = Attachment(routers, job.act.policy, job.act.phases, job.act.layers)
        for pack in job.plan.packs(job.lanes, min(max_rows, MOST_ROWS)):
            for lane in generate_pack(
                model, routers, attachment, stopper, job.requests, job.plan, pack, lambda rows: on_step(rows, rows)
            ):
                yield number, lane


@torch.inference_mode()  # a generator leaves the mode at each yield
def generate_pack(
    model: PreTrainedModel,
    routers: Sequence[Router],
    attachment: Attachment,
    stopper: Stopper,
    requests: Sequence[Request],
    plan: BatchPlan,
    lanes: Sequence[int],
    on_step: Callable[[int], None],
) -> Iterator[LaneResult]:
    """Decode the lanes `lanes` of the plan together; yields each as its last row finishes."""
    seats = [(index, r, slot) for index, lane in enumerate(lanes) for slot, r in enumerate(plan.lanes[lane])]
    rows = [Row(requests[r], r, slot, stopper) for _, r, slot in seats]
    batch = Batch(
        model,
        [row.request.prompt_ids for row in rows],
        [index for index, _, _ in seats],
        lanes,
        room=max(row.request.max_new_tokens for row in rows),
    )
    of_lane = [[row for row, (at, _, _) in zip(rows, seats, strict=True) if at == index] for index in range(len(lanes))]
    open_lanes = set(range(len(lanes)))
    live_rows: list[list[int]] = [[] for _ in lanes]
    steps: list[torch.Tensor] = []
    draw = Draw.of([row.request.sampling for row in rows])

    # Attached for the forward pass alone: whoever holds this generator may use the model between two lanes.
    prompt_rows = batch.prefill_rows()
    # prompts are counted only where a policy decides in prefill: that costs a record of every layer
    record: Record | None = [] if attachment.on_prompts else None
    attachment.rows, attachment.record = prompt_rows, record
    with attachment:
        logits = batch.prefill()
    prompts = _of_prompts(record, prompt_rows) if record is not None else [(0, [])] * len(lanes)
    while True:
        # finished rows stay in the batch until it is compacted; what they are given is not taken
        asked, said = [row.request for row in rows], [row.tokens for row in rows]
        logits = processed(asked, said, logits, stopper.model_eos_ids)
        token_R = most_likely(logits) if draw is None else draw(logits, [len(rows[at].tokens) for at in draw.rows])
        # before tokens are taken: the rows that this step was run for
        fed = [row for row in rows if row.finish is None]
        for row, token in zip(rows, token_R.tolist(), strict=True):
            if row.finish is None:
                row.take(token)
        on_step(len(fed))
        for index in sorted(open_lanes):
            if all(row.finish is not None for row in of_lane[index]):
                open_lanes.discard(index)
                yield _result(lanes[index], of_lane[index], live_rows[index], steps, index, prompts[index])
        live = [row.finish is None for row in rows]
        if not any(live):
            return
        # copying keys and values pays only once many rows are dead
        if sum(live) < COMPACT_BELOW * len(rows):
            kept = torch.tensor([i for i, alive in enumerate(live) if alive], device=token_R.device)
            batch.select(kept)
            rows, token_R = [row for row in rows if row.finish is None], token_R[kept]
            live = [True] * len(rows)
            draw = Draw.of([row.request.sampling for row in rows])
        live_R = torch.tensor(live, device=token_R.device)
        for index in open_lanes:
            live_rows[index].append(sum(row.finish is None for row in of_lane[index]))
        attachment.rows, attachment.record = batch.step_rows(live_R), []
        with attachment:
            logits = batch.step(token_R)
        active_GL = count_active(attachment.record, batch.lane, live_R, len(lanes), routers[0].num_experts)
        steps.append(torch.stack([active_GL, count_changed(attachment.record, batch.lane, live_R, len(lanes))]))


def _of_prompts(record: Record, rows: Rows) -> list[tuple[int, list[int]]]:
    """Of each lane: the tokens of its prompts, and their assignments changed in each layer."""
    tokens = torch.bincount(rows.lane[rows.live], minlength=rows.num_lanes).tolist()
    changed = count_changed(record, rows.lane, rows.live, rows.num_lanes).tolist()
    return list(zip(tokens, changed, strict=True))


def _result(
    lane: int,
    rows: list[Row],
    live_rows: list[int],
    steps: list[torch.Tensor],
    index: int,
    prompts: tuple[int, list[int]],
) -> LaneResult:
    """`steps`: `[2, G, L]` each, active experts and assignments changed."""
    answers = [row.answer() for row in rows]
    own = [step[:, index] for step in steps[: len(live_rows)]]
    active, changed = torch.stack(own, 1).tolist() if own else ([], [])
    return LaneResult(
        lane=lane,
        requests=tuple(row.number for row in rows),
        token_ids=[row.tokens for row in rows],
        texts=[answer.text for answer in answers],
        thoughts=[answer.thought for answer in answers],
        thought_tokens=[answer.thought_tokens for answer in answers],
        finish_reasons=[str(row.finish) for row in rows],
        live_rows=list(live_rows),
        active_experts=active,
        changed=changed,
        prompt_tokens=prompts[0],
        prompt_changed=prompts[1],
    )
