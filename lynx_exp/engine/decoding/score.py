"""Teacher-forced decode: log-likelihoods under a decode-phase policy in one prefill-shaped pass.

With the tokens given, decode step t of a lane is known before it runs: it is the t-th continuation token of each row.
So all steps go through the model in one forward pass, and the policy is told that the rows of (lane, step t) are a
batch of their own. Equal to stepwise decoding up to rounding, since attention is causal and experts act on each row
alone. Prompts that no policy changes come from the store, where they went through the model once for everybody.

R rows, N positions of the padded prompts, T tokens of the longest continuation, G lanes, S decode steps of the longest
lane, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.forced_plan import ForcedPlan
from lynx_exp.engine.decoding.lane import CUT
from lynx_exp.engine.decoding.prompts import PromptStore, gather
from lynx_exp.engine.kv_cache.batch import left_pad, prompt_rows
from lynx_exp.engine.kv_cache.slots import round_up
from lynx_exp.engine.requests.argmax import NotANumber
from lynx_exp.engine.requests.plan import BatchPlan, Request
from lynx_exp.engine.requests.results import LaneResult
from lynx_exp.models import Attachment, Router, Rows, count_active, count_changed

Scoring = Literal["decode", "prefill"]

SCORED_ROWS = 64
"""Rows of a scoring pass at most."""

LOGITS_BYTES = 2**31
"""fp32 logits of one scoring pass, unless a single lane has more."""


def passes(
    requests: Sequence[Request], plan: BatchPlan, model: PreTrainedModel, scoring: Scoring = "decode"
) -> Iterator[list[int]]:
    """All lanes of the plan, those together that go through the model in one pass: many, but where prefills are scored
    and every lane is a single request each goes alone, as with lm-eval at batch size 1."""
    alone = scoring == "prefill" and max(map(len, plan.lanes), default=1) == 1
    return plan.packs(range(len(plan.lanes)), 1 if alone else rows_of_a_pass(requests, model))


def rows_of_a_pass(requests: Sequence[Request], model: PreTrainedModel) -> int:
    """Rows whose logits are all kept: with a large vocabulary those are most of the memory."""
    longest = max((len(request.continuation_ids) for request in requests), default=1)
    return max(1, min(SCORED_ROWS, LOGITS_BYTES // max(logits_bytes(longest, model), 1)))


def logits_bytes(positions: int, model: PreTrainedModel) -> int:
    """Of so many positions, fp32."""
    return 4 * positions * model.get_input_embeddings().num_embeddings


@dataclass(frozen=True, kw_only=True)
class Forced:
    """What one pass over the prompts and continuations of some lanes gave."""

    logits_RTV: Tensor
    """fp32; position t predicts continuation token t."""
    target_RT: Tensor
    mask_RT: Tensor
    """False: past the end of the row's continuation."""
    plan: ForcedPlan
    active_GSL: Tensor
    """Active experts of each lane, decode step and layer."""
    changed_GSL: Tensor
    """Likewise: assignments that the policy changed."""
    prompt_changed_GL: Tensor | None
    """Those among prefill rows; None: the policy does not decide there."""
    prompt_tokens_G: list[int]
    """Prefill rows of each lane."""


def force_pack(
    model: PreTrainedModel,
    routers: Sequence[Router],
    attachment: Attachment,
    requests: Sequence[Request],
    plan: BatchPlan,
    lanes: Sequence[int],
    store: PromptStore | None,
    scoring: Scoring = "decode",
) -> Forced:
    """Run the lanes `lanes` together through the model, continuations given. `store`: of prompts, for policies that
    leave these alone; None: prompts and continuations go through in one pass."""
    steps = ForcedPlan.of(requests, plan, lanes)
    device = model.get_input_embeddings().weight.device
    packed = [requests[number] for number in steps.numbers]
    given = [request.continuation_ids[:length] for request, length in zip(packed, steps.lengths, strict=True)]
    # padded on the right: token t of every row lies in column t, which is decode step t
    target_RT, mask_RT = _right_pad(given, device)
    attachment.record, attachment.idle_dead = [], True
    if store is None:
        logits_RTV = _whole(model, attachment, packed, steps, target_RT, mask_RT, scoring)
    else:
        logits_RTV = _from_store(model, attachment, packed, steps, target_RT, mask_RT, store)
    # scored as one prefill there are no decode steps to count
    decode_steps = 0 if scoring == "prefill" else steps.num_steps
    active_GSL, changed_GSL, prompt_changed_GL, prompt_tokens_G = _counts(attachment, routers, steps, decode_steps)
    return Forced(
        logits_RTV=logits_RTV,
        target_RT=target_RT,
        mask_RT=mask_RT,
        plan=steps,
        active_GSL=active_GSL,
        changed_GSL=changed_GSL,
        prompt_changed_GL=prompt_changed_GL,
        prompt_tokens_G=prompt_tokens_G,
    )


def _whole(
    model: PreTrainedModel,
    attachment: Attachment,
    requests: Sequence[Request],
    steps: ForcedPlan,
    target_RT: Tensor,
    mask_RT: Tensor,
    scoring: Scoring,
) -> Tensor:
    """`[R, T, V]`: one pass, prompts padded on the left."""
    device = target_RT.device
    prompt_RN, real_RN = left_pad([request.prompt_ids for request in requests], device)
    width = target_RT.shape[1] - 1  # the last token is scored but never fed
    real = torch.cat([real_RN, mask_RT[:, 1:]], 1)
    if scoring == "prefill":
        attachment.rows = _flat(_prefill_rows(steps, real))
    else:
        attachment.rows = _flat(_prefill_rows(steps, real_RN), steps.rows(mask_RT))
    # Of a single prefill the logits of all positions are computed, as lm-eval does, where there is room: the bits of a
    # matrix product follow its number of rows.
    single = scoring == "prefill" and len(requests) == 1
    every = single and logits_bytes(real.shape[1], model) <= LOGITS_BYTES
    with attachment:
        logits = model(
            input_ids=torch.cat([prompt_RN, target_RT[:, :-1]], 1),
            attention_mask=real.long(),
            position_ids=(real.long().cumsum(-1) - 1).clamp_min(0),
            use_cache=False,
            logits_to_keep=0 if every else width + 1,
        ).logits
    return logits[:, -width - 1 :].float()


def _from_store(
    model: PreTrainedModel,
    attachment: Attachment,
    requests: Sequence[Request],
    steps: ForcedPlan,
    target_RT: Tensor,
    mask_RT: Tensor,
    store: PromptStore,
) -> Tensor:
    """`[R, T, V]`: the continuations alone, after keys and values of the store."""
    device = target_RT.device
    # prompts went through the model once, for all policies that leave them alone
    places = [store.get(request.prompt_ids) for request in requests]
    # the first token's logits are the last ones of the prompt
    first_RV = torch.stack([prefilled.logits[row] for prefilled, row in places])[:, None].float()
    width = target_RT.shape[1] - 1
    if not width:
        return first_RV
    length_R = torch.tensor([prefilled.lengths[row] for prefilled, row in places], device=device)
    columns = round_up(int(length_R.max()))
    cache = gather(model.config, places, columns)
    # a token sees its own prompt, and what comes before it in its own continuation
    past = torch.arange(columns, device=device) < length_R[:, None]
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    mask = torch.cat([past[:, None].expand(-1, width, -1), causal.expand(len(requests), -1, -1)], -1)
    attachment.rows = replace(_flat(steps.rows(mask_RT)), phase="decode")
    with attachment:
        rest_RTV = model(
            input_ids=target_RT[:, :-1],
            attention_mask=mask[:, None],
            position_ids=length_R[:, None] + torch.arange(width, device=device),
            past_key_values=cache,
            use_cache=True,
        ).logits.float()
    return torch.cat([first_RV, rest_RTV], 1)


@torch.inference_mode()  # a generator leaves the mode at each yield
def score_pack(
    model: PreTrainedModel,
    routers: Sequence[Router],
    attachment: Attachment,
    requests: Sequence[Request],
    plan: BatchPlan,
    lanes: Sequence[int],
    store: PromptStore | None,
    scoring: Scoring,
    on_step: Callable[[int], None],
) -> Iterator[LaneResult]:
    """Score the continuations of the lanes `lanes` together."""
    forced = force_pack(model, routers, attachment, requests, plan, lanes, store, scoring)
    target_RT, mask_RT = forced.target_RT, forced.mask_RT
    token_logprob_RT = forced.logits_RTV.log_softmax(-1).gather(-1, target_RT[..., None])[..., 0].where(mask_RT, 0.0)
    if scoring == "prefill":  # in fp32 and over its own tokens alone, as lm-eval adds them up
        own = [row[:length] for length, row in zip(forced.plan.lengths, token_logprob_RT, strict=True)]
        logprob_R = torch.stack([row.sum() for row in own])
    else:
        logprob_R = token_logprob_RT.double().sum(-1)
    # better no result than a score that compares as false with everything
    if logprob_R.isnan().any():
        bad = forced.plan.numbers[int(logprob_R.isnan().nonzero()[0])]
        raise NotANumber(f"request {bad}: the model's logits are no numbers along its continuation")
    greedy_R = ((forced.logits_RTV.argmax(-1) == target_RT) | ~mask_RT).all(-1)
    continuations = [
        requests[number].continuation_ids[:length]
        for number, length in zip(forced.plan.numbers, forced.plan.lengths, strict=True)
    ]
    on_step(sum(map(len, continuations)))

    for index, lane in enumerate(lanes):
        mine = forced.plan.rows_of(index)
        live_rows = forced.plan.live_rows(index) if scoring == "decode" else []
        cut = [len(continuations[row]) < len(requests[forced.plan.numbers[row]].continuation_ids) for row in mine]
        yield LaneResult(
            lane=lane,
            requests=tuple(forced.plan.numbers[row] for row in mine),
            fillers=sum(forced.plan.fillers[row] for row in mine),
            slots=tuple(forced.plan.slots[row] for row in mine),
            entered=tuple(forced.plan.starts[row] for row in mine),
            token_ids=[list(continuations[row]) for row in mine],
            texts=[""] * len(mine),
            finish_reasons=[CUT if is_cut else "scored" for is_cut in cut],
            logprobs=logprob_R[mine].tolist(),
            greedy=greedy_R[mine].tolist(),
            live_rows=live_rows,
            scored_rows=forced.plan.live_rows(index, fillers=False) if scoring == "decode" else [],
            active_experts=forced.active_GSL[index, : len(live_rows)].tolist(),
            changed=forced.changed_GSL[index, : len(live_rows)].tolist(),
            prompt_tokens=forced.prompt_tokens_G[index],
            prompt_changed=[] if forced.prompt_changed_GL is None else forced.prompt_changed_GL[index].tolist(),
        )


def _prefill_rows(steps: ForcedPlan, real_RN: Tensor) -> Rows:
    """`[R, N]` tokens, left-padded: those that enter a lane together form one prefill."""
    device = real_RN.device
    return Rows(
        decode=torch.zeros_like(real_RN),
        lane=steps.round(device)[:, None].expand_as(real_RN),
        live=real_RN,
        num_lanes=steps.num_rounds,
        key=steps.prefill_keys(device),
        row=prompt_rows(real_RN, steps.row(device)),
    )


def _flat(*parts: Rows) -> Rows:
    """Rows `[R, N]` side by side, as the model sees them; the batches of a part are numbered after those before it."""
    starts = [sum(part.num_lanes for part in parts[:at]) for at in range(len(parts))]
    return Rows(
        decode=torch.cat([part.decode for part in parts], 1).flatten(),
        lane=torch.cat([part.lane + start for part, start in zip(parts, starts, strict=True)], 1).flatten(),
        live=torch.cat([part.live for part in parts], 1).flatten(),
        num_lanes=sum(part.num_lanes for part in parts),
        key=torch.cat([part.key for part in parts]),
        row=torch.cat([part.row for part in parts], 1).flatten(),
    )


def _right_pad(continuations: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids `[R, T]`, given `[R, T]` bool)."""
    if not all(continuations):
        raise ValueError("continuation_ids: empty; scoring needs at least one continuation token")
    width = max(map(len, continuations))
    ids = torch.tensor([list(c) + [0] * (width - len(c)) for c in continuations], device=device)
    lengths = torch.tensor([len(c) for c in continuations], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


def _counts(
    attachment: Attachment, routers: Sequence[Router], steps: ForcedPlan, num_steps: int
) -> tuple[Tensor, Tensor, Tensor | None, list[int]]:
    """The last four fields of `Forced`. Batches of prefill rows, if any, come before those of decode steps."""
    rows, record, num_lanes = attachment.rows, attachment.record, len(steps.lanes)
    if not record:  # a single token each: nothing was fed
        none = torch.zeros(num_lanes, 0, len(routers), dtype=torch.long)
        return none, none, None, [0] * num_lanes
    assert rows is not None
    changed = count_changed(record, rows.lane, rows.live, rows.num_lanes)
    # batches of decode steps are numbered behind those of prefills
    first = rows.num_lanes - num_lanes * num_steps
    shape = (num_lanes, num_steps, len(record))
    active_GSL = torch.zeros(shape, dtype=torch.long)
    if num_steps:
        active = count_active(record, rows.lane, rows.live, rows.num_lanes, routers[0].num_experts)
        active_GSL = active[first:].view(shape)
    if not first or not attachment.on_prompts:
        return active_GSL, changed[first:].view(shape), None, [0] * num_lanes
    lane_of = dict(zip(steps.rounds, steps.lane_indices, strict=True))
    lane_P = torch.tensor([lane_of[number] for number in range(first)], device=changed.device)
    changed_GL = changed.new_zeros(num_lanes, len(record)).index_add_(0, lane_P, changed[:first])
    tokens_P = torch.bincount(rows.lane[rows.live], minlength=rows.num_lanes)[:first]
    tokens_G = tokens_P.new_zeros(num_lanes).index_add_(0, lane_P.to(tokens_P.device), tokens_P)
    return active_GSL, changed[first:].view(shape), changed_GL, tokens_G.tolist()
