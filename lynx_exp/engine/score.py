"""Teacher-forced decode: log-likelihoods under a decode-phase policy in one prefill-shaped pass.

With the tokens given, decode step t of a lane is known before it runs: it is the t-th continuation token of each row.
So all steps go through the model in one forward pass, and the policy is told that the rows of (lane, step t) are a
batch of their own. Equal to stepwise decoding up to rounding, since attention is causal and experts act on each row
alone.

R rows, N positions of the padded prompts, T tokens of the longest continuation, G lanes, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.batch import PREFILL_KEY, lane_keys, left_pad, prompt_rows, row_numbers
from lynx_exp.engine.plan import BatchPlan, Request
from lynx_exp.engine.results import LaneResult
from lynx_exp.models import Attachment, Router, Rows, count_active


@dataclass(frozen=True, kw_only=True)
class Forced:
    """What one pass over the prompts and continuations of some lanes gave."""

    logits_RTV: Tensor
    """fp32; position t predicts continuation token t."""
    target_RT: Tensor
    given_RT: Tensor
    """False: past the end of the row's continuation."""
    numbers: list[tuple[int, int]]
    """For each row the index of its lane and the number of its request."""
    active_GTL: Tensor
    """Active experts of each lane, decode step and layer."""

    def rows_of(self, index: int) -> list[int]:
        """The rows of the lane with this index."""
        return [row for row, (lane, _) in enumerate(self.numbers) if lane == index]


def force_pack(
    model: PreTrainedModel,
    routers: Sequence[Router],
    attachment: Attachment,
    requests: Sequence[Request],
    plan: BatchPlan,
    lanes: Sequence[int],
) -> Forced:
    """Run the lanes `lanes` together through the model, continuations given."""
    numbers = [(index, r) for index, lane in enumerate(lanes) for r in plan.lanes[lane]]
    device = model.get_input_embeddings().weight.device
    prompt_RN, real_RN = left_pad([requests[r].prompt_ids for _, r in numbers], device)
    target_RT, given_RT = _right_pad([requests[r].continuation_ids for _, r in numbers], device)
    lane_R = torch.tensor([index for index, _ in numbers], device=device)
    num_steps = target_RT.shape[1] - 1  # the last token is scored but never fed

    real = torch.cat([real_RN, given_RT[:, 1:]], 1)
    attachment.rows = _rows(lane_R, lanes, real_RN, given_RT, num_steps)
    attachment.record = []
    with attachment:
        logits_RTV = model(
            input_ids=torch.cat([prompt_RN, target_RT[:, :-1]], 1),
            attention_mask=real.long(),
            position_ids=(real.long().cumsum(-1) - 1).clamp_min(0),
            use_cache=False,
            logits_to_keep=num_steps + 1,
        ).logits.float()
    return Forced(
        logits_RTV=logits_RTV,
        target_RT=target_RT,
        given_RT=given_RT,
        numbers=numbers,
        active_GTL=_active(attachment, routers[0].num_experts, len(lanes), num_steps),
    )


@torch.inference_mode()  # a generator leaves the mode at each yield
def score_pack(
    model: PreTrainedModel,
    routers: Sequence[Router],
    attachment: Attachment,
    requests: Sequence[Request],
    plan: BatchPlan,
    lanes: Sequence[int],
    on_step: Callable[[int], None],
) -> Iterator[LaneResult]:
    """Score the continuations of the lanes `lanes` together."""
    forced = force_pack(model, routers, attachment, requests, plan, lanes)
    target_RT, given_RT = forced.target_RT, forced.given_RT
    token_logprob_RT = forced.logits_RTV.log_softmax(-1).gather(-1, target_RT[..., None])[..., 0].where(given_RT, 0.0)
    logprob_R = token_logprob_RT.double().sum(-1)
    greedy_R = ((forced.logits_RTV.argmax(-1) == target_RT) | ~given_RT).all(-1)
    continuations = [requests[number].continuation_ids for _, number in forced.numbers]
    on_step(sum(map(len, continuations)))

    for index, lane in enumerate(lanes):
        mine = forced.rows_of(index)
        steps = max(len(continuations[row]) for row in mine) - 1
        yield LaneResult(
            lane=lane,
            requests=tuple(forced.numbers[row][1] for row in mine),
            token_ids=[list(continuations[row]) for row in mine],
            texts=[""] * len(mine),
            finish_reasons=["scored"] * len(mine),
            logprobs=logprob_R[mine].tolist(),
            greedy=greedy_R[mine].tolist(),
            live_rows=[sum(len(continuations[row]) > t + 1 for row in mine) for t in range(steps)],
            active_experts=forced.active_GTL[index, :steps].tolist(),
        )


def _right_pad(continuations: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids `[R, T]`, given `[R, T]` bool)."""
    if not all(continuations):
        raise ValueError("continuation_ids: empty; scoring needs at least one continuation token")
    width = max(map(len, continuations))
    ids = torch.tensor([list(c) + [0] * (width - len(c)) for c in continuations], device=device)
    lengths = torch.tensor([len(c) for c in continuations], device=device)
    return ids, torch.arange(width, device=device) < lengths[:, None]


def _rows(lane_R: Tensor, lanes: Sequence[int], real_RN: Tensor, given_RT: Tensor, num_steps: int) -> Rows:
    """Prompt tokens form one batch a lane (numbers 0..G-1), continuation tokens one a lane and step (G + lane * steps
    + t)."""
    device, num_lanes = lane_R.device, len(lanes)
    step_T = torch.arange(num_steps, device=device)
    lane_RN = lane_R[:, None].expand_as(real_RN)
    lane_RT = num_lanes + lane_R[:, None] * num_steps + step_T
    live_RT = given_RT[:, 1:]
    base_G = lane_keys(lanes, device)
    row_R = row_numbers(lane_R.tolist(), device)
    return Rows(
        decode=torch.cat([torch.zeros_like(real_RN), torch.ones_like(live_RT)], 1).flatten(),
        lane=torch.cat([lane_RN, lane_RT], 1).flatten(),
        live=torch.cat([real_RN, live_RT], 1).flatten(),
        num_lanes=num_lanes * (1 + num_steps),
        key=torch.cat([base_G + PREFILL_KEY, (base_G[:, None] + step_T).flatten()]),
        row=torch.cat([prompt_rows(real_RN, row_R), row_R[:, None].expand_as(live_RT)], 1).flatten(),
    )


def _active(attachment: Attachment, num_experts: int, num_lanes: int, num_steps: int) -> Tensor:
    """`[G, T-1, L]`: active experts of each lane, decode step and layer."""
    rows, record = attachment.rows, attachment.record
    assert rows is not None and record is not None
    counts = count_active(record, rows.lane, rows.live, rows.num_lanes, num_experts)
    return counts[num_lanes:].view(num_lanes, num_steps, -1)
