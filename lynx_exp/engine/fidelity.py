"""How far a policy moves the model's next-token distributions: on vanilla's own responses, where both see the same
text.

Far less noisy than accuracy, since every token counts and no two runs drift apart: one forward pass each,
teacher-forced (`lynx_exp.engine.score`).

R rows, T tokens of the longest response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lynx_exp.engine.plan import BatchPlan, Request
from lynx_exp.engine.prompts import PromptStore
from lynx_exp.engine.score import Forced, force_pack
from lynx_exp.engine.sections import Act
from lynx_exp.models import Attachment, Router


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One response under one policy, sums over its tokens."""

    act: int
    """Number of the policy, as asked."""
    lane: int
    request: int
    tokens: int
    kl: float
    """Kullback-Leibler divergence of the policy's distributions from vanilla's, KL(vanilla || policy), nats."""
    agreeing: int
    """Tokens where both have the same most likely one."""


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
) -> Iterator[Fidelity]:
    """Compare policies with vanilla, which goes through the model once, on the continuations of the lanes `lanes`."""

    def run(act: Act) -> Forced:
        attachment = Attachment(routers, act.policy, act.phases, act.layers)
        return force_pack(model, routers, attachment, requests, plan, lanes, None if act.prefills else store)

    vanilla = run(Act(policy=None))
    before_RTV, given_RT = vanilla.logits_RTV.log_softmax(-1), vanilla.given_RT
    tokens_R = given_RT.sum(-1)
    for number, act in enumerate(acts):
        after_RTV = run(act).logits_RTV.log_softmax(-1)
        agreeing_R = ((before_RTV.argmax(-1) == after_RTV.argmax(-1)) & given_RT).sum(-1)
        kl_R = torch.zeros(len(given_RT), dtype=torch.float64)
        for row, (before_TV, after_TV) in enumerate(zip(before_RTV, after_RTV, strict=True)):
            before_TV, after_TV = before_TV[given_RT[row]].double(), after_TV[given_RT[row]].double()
            kl_R[row] = (before_TV.exp() * (before_TV - after_TV)).sum(-1).clamp_min(0.0).sum()
        on_step(int(tokens_R.sum()))
        for row, request in enumerate(vanilla.plan.numbers):
            yield Fidelity(
                act=number,
                lane=lanes[vanilla.plan.lane_indices[row]],
                request=request,
                tokens=int(tokens_R[row]),
                kl=float(kl_R[row]),
                agreeing=int(agreeing_R[row]),
            )
