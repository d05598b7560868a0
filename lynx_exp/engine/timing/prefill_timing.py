"""How long the prefill of one lane takes under vanilla and under policies that act on prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.prompts import Prompt, pads_left, prefill, prompt_rows_of
from lynx_exp.engine.kv_cache.batch import PREFILL_KEY
from lynx_exp.engine.timing.repeats import Interval, Times, median_interval, paired_ratios, repeat, warm_up
from lynx_exp.models import Attachment, Router, count_active, from_first
from lynx_exp.routing import Phases, Policy

VANILLA = "vanilla"


@dataclass(frozen=True, kw_only=True)
class PrefillTiming:
    """Times of whole prefills of one lane."""

    ms: Times
    """name -> repeat -> one time in milliseconds; `vanilla` first."""
    active_experts: dict[str, float]
    """name -> distinct experts per layer that the prompts ran."""
    prompt_tokens: int
    stable: bool
    precision_reached: bool

    def speedup(self, name: str) -> Interval:
        """Vanilla's time over `name`'s: median over repeats with a bootstrap interval."""
        return median_interval(paired_ratios(self.ms[VANILLA], self.ms[name]))


def time_prefill(
    model: PreTrainedModel,
    routers: Sequence[Router],
    prompts: Sequence[Prompt],
    policies: Mapping[str, Policy],
    phases: Phases,
    layers: str | None,
    *,
    repeats: int,
    max_repeats: int,
    precision: float,
    clock: Callable[[], float] = time.perf_counter,
) -> PrefillTiming:
    """Warm-up rounds, then repeats as in `measure`; `clock`: seconds."""
    device = model.get_input_embeddings().weight.device
    rows = prompt_rows_of(prompts, range(len(prompts)), PREFILL_KEY, device, left=pads_left(model))

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def attach(policy: Policy) -> Attachment:
        attachment = Attachment(routers, policy, phases, layers)
        attachment.rows = rows
        return attachment

    def turn(policy: Policy | None) -> list[float]:
        # vanilla is the plain model, without a hook on any router
        attachment = None if policy is None else attach(policy).attach()
        try:
            wait()
            start = clock()
            prefill(model, prompts)
            wait()
            return from_first([(clock() - start) * 1e3], routers)  # ranks must stop at the same repeat
        finally:
            if attachment is not None:
                attachment.detach()

    def active(policy: Policy | None) -> float:
        attachment = Attachment(routers, policy, phases, layers)
        attachment.rows, attachment.record = rows, []
        with attachment:
            prefill(model, prompts)
        counts = count_active(attachment.record, rows.lane, rows.live, 1, routers[0].num_experts)
        return counts.double().mean().item()

    subjects: dict[str, Policy | None] = {VANILLA: None, **policies}
    active_experts = {name: active(policy) for name, policy in subjects.items()}
    turns = {name: partial(turn, policy) for name, policy in subjects.items()}
    # the warm-up's own times are not kept
    _, stable = warm_up(turns)
    ms, reached = repeat(turns, repeats=repeats, max_repeats=max_repeats, precision=precision)
    return PrefillTiming(
        ms=ms,
        active_experts=active_experts,
        prompt_tokens=sum(map(len, prompts)),
        stable=stable,
        precision_reached=reached,
    )
