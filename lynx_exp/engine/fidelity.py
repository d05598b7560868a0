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
from lynx_exp.engine.score import force_pack
from lynx_exp.models import Attachment, Router


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """One response, sums over its tokens."""

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
    attachment: Attachment,
    requests: Sequence[Request],
    plan: BatchPlan,
    lanes: Sequence[int],
    on_step: Callable[[int], None],
) -> Iterator[Fidelity]:
    """Compare the policy with vanilla on the continuations of the lanes `lanes`."""
    vanilla = force_pack(model, routers, Attachment(routers, None), requests, plan, lanes)
    policy = force_pack(model, routers, attachment, requests, plan, lanes)
    given_RT = vanilla.given_RT
    tokens_R = given_RT.sum(-1)
    agreeing_R = ((vanilla.logits_RTV.argmax(-1) == policy.logits_RTV.argmax(-1)) & given_RT).sum(-1)
    kl_R = torch.zeros(len(given_RT), dtype=torch.float64)
    for row, (before_TV, after_TV) in enumerate(zip(vanilla.logits_RTV, policy.logits_RTV, strict=True)):
        before_TV, after_TV = before_TV.log_softmax(-1).double(), after_TV.log_softmax(-1).double()
        kl_T = (before_TV.exp() * (before_TV - after_TV)).sum(-1)
        kl_R[row] = kl_T[given_RT[row]].clamp_min(0.0).sum()
    on_step(2 * int(tokens_R.sum()))
    for row, (index, number) in enumerate(vanilla.numbers):
        yield Fidelity(
            lane=lanes[index],
            request=number,
            tokens=int(tokens_R[row]),
            kl=float(kl_R[row]),
            agreeing=int(agreeing_R[row]),
        )
