"""Decode latency of policies against vanilla: same prompts, same tokens, interleaved repeats, every step's time kept.

All policies are fed the tokens that vanilla generates, past EOS and to a fixed length. So a step of one policy is
paired with the same step of vanilla: same context, same inputs; a policy that rambles, stops early or repeats itself
gains nothing by it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.batch import Batch
from lynx_exp.models import Attachment, Router, count_active
from lynx_exp.routing import Phases, Policy

VANILLA = "vanilla"
_RESAMPLES = 2000

Interval = tuple[float, float | None, float | None]
"""(median, low, high) at 95 %; the bounds are None with a single repeat."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of single decode steps."""

    step_ms: dict[str, list[list[float]]]
    """name -> repeat -> step -> milliseconds. `vanilla` first."""
    active_experts: dict[str, float]
    """name -> distinct experts per layer and step, mean."""
    batch_size: int
    new_tokens: int

    @property
    def names(self) -> list[str]:
        return list(self.step_ms)

    def tpot_ms(self, name: str) -> Interval:
        """Time per output token: mean over the steps of a repeat; median over repeats with a bootstrap interval."""
        return _median_interval(self._repeat_means(name))

    def speedup(self, name: str) -> Interval:
        """Vanilla's time over `name`'s, paired step by step; above 1 is faster than vanilla.

        Median over the steps of a repeat, since a step that the machine disturbed says nothing about the policy; then
        median over repeats with a bootstrap interval.
        """
        self._repeat_means(name)
        ratios = []
        for vanilla_steps, own_steps in zip(self.step_ms[VANILLA], self.step_ms[name], strict=True):
            ratios.append(median(v / own for v, own in zip(vanilla_steps, own_steps, strict=True)))
        return _median_interval(ratios)

    def _repeat_means(self, name: str) -> list[float]:
        if name not in self.step_ms:
            raise ValueError(f"name={name}: not measured; measured: {', '.join(self.step_ms)}")
        return [sum(steps) / len(steps) for steps in self.step_ms[name]]


def _median_interval(values: Sequence[float]) -> Interval:
    sample = torch.tensor(values, dtype=torch.float64)
    centre = float(sample.quantile(0.5))
    if len(values) < 2:
        return centre, None, None
    draws = torch.randint(len(values), (_RESAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
    medians = sample[draws].quantile(0.5, dim=1)
    return centre, float(medians.quantile(0.025)), float(medians.quantile(0.975))


class _Subject:
    """One policy with a prefilled batch of its own lane."""

    def __init__(
        self,
        model: PreTrainedModel,
        routers: Sequence[Router],
        policy: Policy | None,
        phases: Phases,
        layers: str | None,
        batch: Batch,
    ) -> None:
        self.model, self.routers, self.policy, self.phases, self.batch = model, routers, policy, phases, batch
        self.layers = layers
        self.live = torch.ones(batch.num_rows, dtype=torch.bool, device=batch.lane.device)

    def attach(self) -> Attachment | None:
        """None for vanilla: the plain model, without a hook on any router."""
        return (
            Attachment(self.routers, self.policy, self.phases, self.layers).attach()
            if self.policy is not None
            else None
        )

    def prefill(self) -> Tensor:
        attachment = self.attach()
        if attachment is not None:
            attachment.rows = self.batch.prefill_rows()
        try:
            return self.batch.prefill().argmax(-1)
        finally:
            if attachment is not None:
                attachment.detach()

    def run(self, tokens_SR: Tensor) -> list[float]:
        """Milliseconds of each step."""
        attachment = self.attach()
        self.batch.rewind()
        times = []
        try:
            for token_R in tokens_SR:
                start = self._clock()
                if attachment is not None:
                    attachment.rows = self.batch.step_rows(self.live)
                self.batch.step(token_R).argmax(-1)
                times.append((self._clock() - start) * 1e3)
        finally:
            if attachment is not None:
                attachment.detach()
        return times

    def greedy(self, token_R: Tensor, steps: int) -> Tensor:
        """`[S, R]`: the tokens fed when the model goes its own way."""
        fed = []
        for _ in range(steps):
            fed.append(token_R)
            token_R = self.batch.step(token_R).argmax(-1)
        return torch.stack(fed)

    def mean_active(self, tokens_SR: Tensor) -> float:
        """Distinct experts per layer and step."""
        self.batch.rewind()
        counts = []
        with Attachment(self.routers, self.policy, self.phases, self.layers) as attachment:
            for token_R in tokens_SR:
                attachment.rows, attachment.record = self.batch.step_rows(self.live), []
                self.batch.step(token_R)
                counts.append(
                    count_active(attachment.record, self.batch.lane, self.live, 1, self.routers[0].num_experts)
                )
        return torch.stack(counts).double().mean().item()

    def _clock(self) -> float:
        if self.live.device.type == "cuda":
            torch.cuda.synchronize(self.live.device)
        return time.perf_counter()


def measure(
    model: PreTrainedModel,
    routers: Sequence[Router],
    prompts: Sequence[Sequence[int]],
    policies: Mapping[str, Policy],
    phases: Phases,
    layers: str | None,
    new_tokens: int,
    repeats: int,
    on_step: Callable[[int], None],
) -> Timing:
    """Time `new_tokens` decode steps of one lane holding all `prompts`, under vanilla and each policy, `repeats`
    times over.

    Warm-up: each subject decodes once unmeasured. Within a repeat the order of subjects rotates.
    """
    if VANILLA in policies:
        raise ValueError(f"policies: the name {VANILLA} is taken; vanilla is always measured")
    for field, value in (("new_tokens", new_tokens), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{field}={value}: must be at least 1")

    def subject(policy: Policy | None) -> _Subject:
        batch = Batch(model, prompts, [0] * len(prompts), [0], room=new_tokens)
        made = _Subject(model, routers, policy, phases, layers, batch)
        if not batch.slots:
            raise ValueError(
                f"{type(model).__name__}: measure needs full attention in every layer (its cache cannot be rewound)"
            )
        return made

    vanilla = subject(None)
    tokens_SR = vanilla.greedy(vanilla.prefill(), new_tokens)
    subjects = {VANILLA: vanilla}
    for name, policy in policies.items():
        subjects[name] = (
            subject(policy)
            if phases in ("prefill", "both")
            else _Subject(model, routers, policy, phases, layers, vanilla.batch)
        )
        if subjects[name].batch is not vanilla.batch:
            subjects[name].prefill()

    active = {name: each.mean_active(tokens_SR) for name, each in subjects.items()}  # the warm-up as well
    names = list(subjects)
    step_ms: dict[str, list[list[float]]] = {name: [] for name in names}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for repeat in range(repeats):
            for turn in range(len(names)):
                name = names[(repeat + turn) % len(names)]
                step_ms[name].append(subjects[name].run(tokens_SR))
                on_step(len(prompts) * new_tokens)
    finally:
        if enabled:
            gc.enable()
    return Timing(step_ms=step_ms, active_experts=active, batch_size=len(prompts), new_tokens=new_tokens)
