"""How far a policy moves the model's next-token distributions: on vanilla's own responses, where both see the same
text.

Far less noisy than accuracy, since every token counts and no two runs drift apart: one forward pass each,
teacher-forced (`lynx_exp.engine.decoding.score`).

R rows, T tokens of the longest response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.prompts import PromptStore
from lynx_exp.engine.decoding.score import Forced, force_pack
from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.decoding.tokens import TokenRows, decode_rows_of, experts_of
from lynx_exp.engine.requests.plan import BatchPlan, Request
from lynx_exp.models import Attachment, Router


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One response under one policy, sums over its tokens."""

    act: int
    """Position of the policy among those that were given."""
    lane: int
    request: int
    tokens: int
    kl: float
    """Kullback-Leibler divergence of the policy's distributions from vanilla's, KL(vanilla || policy), nats."""
    agreeing: int
    """Tokens where both have the same most likely one."""
    retained: float
    """Share of the router's top-K mass that runs under the policy (`retained_share`), mean over layers, summed over the
    tokens fed: all but the last."""
    prompt_tokens: int
    """Of the prompt, where the policy decides there, otherwise 0."""
    prompt_retained: float
    """Likewise, summed over these."""
    token_rows: TokenRows | None = None
    """Token by token, where that was asked for."""


@torch.inference_mode()  # a generator leaves the mode at each yield
def compare_pack(
    model: PreTrainedModel,
    routers: Sequence[Router],
    acts: Sequence[Act],
    requests: Sequence[Request],
    plan: BatchPlan,
    lanes: Sequence[int],
    store: PromptStore | None,
    on_step: Callable[[int], None],
    tokens: Collection[int] = (),
) -> Iterator[Fidelity]:
    """Compare policies with vanilla, which goes through the model once, on the continuations of the lanes `lanes`.
    `tokens`: numbers of the acts that are wanted token by token."""

    def run(act: Act, *, confident: bool = False) -> tuple[Forced, Attachment]:
        attachment = Attachment(routers, act.policy, act.phases, act.layers)
        attachment.confidence = [] if confident else None
        attachment.retained = None if act.policy is None else []
        forced = force_pack(model, routers, attachment, requests, plan, lanes, None if act.prefills else store)
        return forced, attachment

    # once for all policies: it is what each of them is held against
    vanilla, watched = run(Act(policy=None), confident=bool(tokens))
    before_RTV, mask_RT = vanilla.logits_RTV.log_softmax(-1), vanilla.mask_RT
    tokens_R = mask_RT.sum(-1)
    for number, act in enumerate(acts):
        forced, attachment = run(act)
        after_RTV = forced.logits_RTV.log_softmax(-1)
        agreeing_R = ((before_RTV.argmax(-1) == after_RTV.argmax(-1)) & mask_RT).sum(-1)
        kl_RT = torch.zeros(mask_RT.shape, dtype=torch.float64)
        # row by row: in fp64 all rows at once would take twice the memory of the logits again
        for row, (before_TV, after_TV) in enumerate(zip(before_RTV, after_RTV, strict=True)):
            given_T = mask_RT[row]
            before_TV, after_TV = before_TV[given_T].double(), after_TV[given_T].double()
            kl_RT[row, : len(before_TV)] = (before_TV.exp() * (before_TV - after_TV)).sum(-1).clamp_min(0.0).cpu()
        kl_R = kl_RT.sum(-1)
        retained_2R, prompt_tokens_R = _retained(attachment, len(mask_RT), mask_RT.shape[1] - 1)
        rows_R = _token_rows(vanilla, watched, attachment, kl_RT) if number in tokens else [None] * len(mask_RT)
        on_step(int(tokens_R.sum()))
        for row, request in enumerate(vanilla.plan.numbers):
            # fillers shape the batch, and are not part of the result
            if vanilla.plan.fillers[row]:
                continue
            yield Fidelity(
                act=number,
                lane=lanes[vanilla.plan.lane_indices[row]],
                request=request,
                tokens=int(tokens_R[row]),
                kl=float(kl_R[row]),
                agreeing=int(agreeing_R[row]),
                retained=float(retained_2R[1, row]) if int(tokens_R[row]) > 1 else 0.0,
                prompt_tokens=int(prompt_tokens_R[row]),
                prompt_retained=float(retained_2R[0, row]),
                token_rows=rows_R[row],
            )


def _retained(attachment: Attachment, rows: int, fed: int) -> tuple[Tensor, Tensor]:
    """(`[2, R]` float64: share of the router's mass that still runs, mean over layers, summed over the tokens of the
    prompt, where the policy decides there, and over the `fed` places of the continuation; `[R]`: those tokens of the
    prompt)."""
    nothing = torch.zeros(2, rows, dtype=torch.float64)
    if not attachment.record:  # a single token each: nothing was fed
        return nothing, torch.zeros(rows, dtype=torch.long)
    assert attachment.rows is not None
    live_RN = attachment.rows.live.view(rows, -1).cpu()
    share_RN = torch.ones(live_RN.shape, dtype=torch.float64)
    if attachment.retained:
        share_RN = torch.stack([each.cpu() for each in attachment.retained]).double().mean(0).view(rows, -1)
    share_RN = share_RN.where(live_RN, 0.0)
    prompt = live_RN.shape[1] - fed if attachment.on_prompts else 0
    first = live_RN.shape[1] - fed
    sums = torch.stack([share_RN[:, :prompt].sum(-1), share_RN[:, first:].sum(-1)])
    return sums, live_RN[:, :prompt].sum(-1)


def _token_rows(vanilla: Forced, watched: Attachment, attachment: Attachment, kl_RT: Tensor) -> list[TokenRows | None]:
    """Of each response; None for one of a single token, which no decode step was fed."""
    plan, (rows, longest) = vanilla.plan, kl_RT.shape
    if longest == 1:
        return [None] * rows
    assert watched.confidence is not None and attachment.record is not None
    confidence_RTL = decode_rows_of(watched.confidence, rows, longest - 1).cpu()
    experts_RTLW = experts_of(attachment.record, rows, longest - 1).cpu()
    found: list[TokenRows | None] = []
    for row, (start, length) in enumerate(zip(plan.starts, plan.lengths, strict=True)):
        fed = TokenRows(
            steps=list(range(start, start + length - 1)),
            kl_N=kl_RT[row, 1:length],
            confidence_NL=confidence_RTL[row, : length - 1],
            experts_NLW=experts_RTLW[row, : length - 1],
        )
        found.append(fed if length > 1 else None)
    return found
