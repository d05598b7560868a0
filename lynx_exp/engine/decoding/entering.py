"""Requests that enter a lane, and their prompts: from the store or, where the lane's policy acts on prompts, prefilled
for them alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.lane import Job, Lane, Row
from lynx_exp.engine.decoding.prompts import PromptStore, first_tokens, pads_left, prefill, prompt_rows_of
from lynx_exp.engine.kv_cache.batch import PREFILL_KEY
from lynx_exp.engine.kv_cache.slots import Prefilled
from lynx_exp.engine.requests.stopping import Stopper
from lynx_exp.models import Attachment, Router, count_changed


def entering(
    model: PreTrainedModel,
    routers: Sequence[Router],
    stopper: Stopper,
    job: Job,
    store: PromptStore,
    lane: Lane,
    device: torch.device,
) -> Iterator[tuple[Row, Prefilled, int]]:
    """Fill the lane's free slots from its queue, then with fillers: each row, the prefill that holds its prompt, and
    its place there. A request whose first token is its last leaves at once, and frees its slot for the next."""
    while lane.free:
        numbers, fillers = lane.entering()
        if not numbers:
            return
        slots, lane.free = lane.free[: len(numbers)], lane.free[len(numbers) :]
        places = _prefilled(model, routers, job, store, lane, numbers, slots, device)
        lane.admissions += 1
        first = first_tokens([job.requests[number] for number in numbers], places, stopper.model_eos_ids)
        for number, slot, token, (made, at) in zip(numbers, slots, first, places, strict=True):
            row = Row(job.requests[number], number, slot, stopper, fillers)
            row.entered = len(lane.live_rows)
            row.take(token)
            lane.enter(row)
            yield row, made, at


def _prefilled(
    model: PreTrainedModel,
    routers: Sequence[Router],
    job: Job,
    store: PromptStore,
    lane: Lane,
    numbers: Sequence[int],
    slots: Sequence[int],
    device: torch.device,
) -> list[tuple[Prefilled, int]]:
    """For each of the requests `numbers`, which take the lane's `slots`, the prefill that holds it and its row there;
    what a policy changed in it is noted in the lane."""
    prompts = [job.requests[number].prompt_ids for number in numbers]
    if not job.act.prefills:
        return [store.get(prompt) for prompt in prompts]
    with Attachment(routers, job.act.policy, job.act.phases, job.act.layers) as attachment:
        key = (lane.number << 32) + PREFILL_KEY + lane.admissions
        rows = prompt_rows_of(prompts, slots, key, device, left=pads_left(model))
        attachment.rows, attachment.record = rows, []
        own = prefill(model, prompts)
    changed_L = count_changed(attachment.record, rows.lane, rows.live, 1)[0]
    lane.prompt_changed = changed_L if lane.prompt_changed is None else lane.prompt_changed + changed_L
    lane.prompt_tokens += sum(map(len, prompts))
    return [(own, row) for row in range(len(prompts))]
