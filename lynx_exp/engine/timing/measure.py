"""Decode latency of policies against vanilla: same prompts, same tokens, interleaved repeats, every step's time kept.

All policies are fed the tokens that vanilla generates, past EOS and to a fixed length. So a step of one policy is
paired with the same step of vanilla: same context, same inputs; a policy that rambles, stops early or repeats itself
gains nothing by it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import TypedDict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.graph import CannotRecord, Capture, Graphs
from lynx_exp.engine.decoding.slot_batch import SlotBatch
from lynx_exp.engine.kv_cache.batch import Batch
from lynx_exp.engine.timing.bandwidth import BandwidthUse, Hardware
from lynx_exp.engine.timing.energy import Meter, joules_per_token
from lynx_exp.engine.timing.repeats import Interval, Times, Turn, median_interval, paired_ratios, repeat, warm_up
from lynx_exp.models import Attachment, Router, count_active, from_first
from lynx_exp.routing import Phases, Policy

VANILLA = "vanilla"

MakeBatch = Callable[[Sequence[Sequence[int]], int], Batch | SlotBatch]
"""From prompts and decode steps."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times of single decode steps."""

    step_ms: Times
    """name -> repeat -> step -> milliseconds. `vanilla` first."""
    warmup_ms: Times
    """The same of the rounds before the first repeat; part of no figure."""
    stable: bool
    """Whether the warm-up settled before it was cut off."""
    precision_reached: bool
    """Whether every policy's speed-up is known as well as was asked; True if there is none."""
    active_experts: dict[str, float]
    """name -> distinct experts per layer and step, mean."""
    batch_size: int
    new_tokens: int
    graphed: bool = False
    """Whether steps were replayed as CUDA graphs."""
    steps_note: str | None = None
    """Why they were not, though it was tried."""
    compiled: bool = False
    """Whether their layers were compiled."""
    experts_implementation: str | None = None
    """How experts were computed, for vanilla and policies alike."""
    candidates_ms: Mapping[str, float] = field(default_factory=dict)
    """Ways to compute experts that were tried -> vanilla's median step in milliseconds. Empty: it was given."""
    serving: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """name -> what a client of a serving engine would see, in milliseconds: TTFT, TPOT, ITL, E2E. Empty: no such
    engine."""
    positions: tuple[int, ...] = ()
    """That all rows attend to together, of each step."""
    hardware: Hardware | None = None
    """None: not known, or another process has the model."""
    joules_per_token: Mapping[str, float] = field(default_factory=dict)
    """Empty: nothing counts them."""

    @property
    def names(self) -> list[str]:
        return list(self.step_ms)

    @property
    def repeats(self) -> int:
        """Repeats done."""
        return len(self.step_ms[VANILLA])

    @property
    def warmup_rounds(self) -> int:
        return len(self.warmup_ms[VANILLA])

    @property
    def warmup_round_ms(self) -> dict[str, list[float]]:
        """name -> round of the warm-up -> median step in milliseconds: what `stable` was decided on."""
        return {name: [median(steps) for steps in rounds] for name, rounds in self.warmup_ms.items()}

    def step_time_ms(self, name: str) -> Interval:
        """Time of a decode step: mean over the steps of a repeat; median over repeats with a bootstrap interval."""
        return median_interval([sum(steps) / len(steps) for steps in self._repeats_of(name)])

    def speedup(self, name: str) -> Interval:
        """Vanilla's time over `name`'s, paired step by step; above 1 is faster than vanilla.

        Median over the steps of a repeat; then median over repeats with a bootstrap interval, the one whose width
        decided how many repeats there are.
        """
        return median_interval(paired_ratios(self.step_ms[VANILLA], self._repeats_of(name)))

    def bandwidth(self, name: str) -> BandwidthUse | None:
        """What `name`'s steps asked of the hardware."""
        if self.hardware is None:
            return None
        active, read = self.active_experts[name], self.hardware.bytes
        return self.hardware.bandwidth(
            (read.of(active=active, rows=self.batch_size, positions=positions), ms)
            for steps in self._repeats_of(name)
            for positions, ms in zip(self.positions, steps, strict=True)
        )

    def _repeats_of(self, name: str) -> list[list[float]]:
        if name not in self.step_ms:
            raise ValueError(f"name={name}: not measured; measured: {', '.join(self.step_ms)}")
        return self.step_ms[name]


class _Subject:
    """One policy with a prefilled batch of its own lane."""

    def __init__(
        self,
        model: PreTrainedModel,
        routers: Sequence[Router],
        policy: Policy | None,
        phases: Phases,
        layers: str | None,
        batch: Batch | SlotBatch,
        clock: Callable[[], float],
    ) -> None:
        self.model, self.routers, self.policy, self.phases, self.batch = model, routers, policy, phases, batch
        self.layers, self.clock = layers, clock
        self.live = torch.ones(batch.num_rows, dtype=torch.bool, device=batch.lane.device)
        self.graphs: Graphs | None = None
        """Of its steps; None: each is launched from Python."""

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
                self._step(attachment, token_R).argmax(-1)
                times.append((self._clock() - start) * 1e3)
        finally:
            if attachment is not None:
                attachment.detach()
        return times

    def _step(self, attachment: Attachment | None, token_R: Tensor) -> Tensor:
        if self.graphs is not None:
            assert isinstance(self.batch, SlotBatch)
            rows = replace(self.batch.step_rows(self.live), key=self.graphs.key_G)

            def announce() -> None:
                if attachment is not None:
                    attachment.rows = rows

            return self.batch.graphed_step(token_R, self.graphs, announce)
        if attachment is not None:
            attachment.rows = self.batch.step_rows(self.live)
        return self.batch.step(token_R)

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
        return self.clock()


def measure(
    model: PreTrainedModel,
    routers: Sequence[Router],
    prompts: Sequence[Sequence[int]],
    make_batch: MakeBatch,
    policies: Mapping[str, Policy],
    phases: Phases,
    layers: str | None,
    *,
    new_tokens: int,
    repeats: int,
    max_repeats: int,
    precision: float,
    on_step: Callable[[int], None],
    clock: Callable[[], float] = time.perf_counter,
    capture: Capture | None = None,
    meter: Meter | None = None,
) -> Timing:
    """Time `new_tokens` decode steps of one lane holding all `prompts`, under vanilla and each policy in turn.

    First rounds that do not count, until they are stable (`repeats.warm_up`); then from `repeats` to `max_repeats` that
    do, until every speed-up's 95 % interval is at most +- `precision`, relative (`repeats.repeat`). `clock`: seconds.
    `capture`: makes graphs of the steps; None: they are launched from Python. `meter`: of energy, where there is one.
    """
    check_measure_arguments(policies, new_tokens, repeats, max_repeats, precision)

    def subject(policy: Policy | None) -> _Subject:
        batch = make_batch(prompts, new_tokens)
        made = _Subject(model, routers, policy, phases, layers, batch, clock)
        if not batch.slots:
            raise ValueError(
                f"{type(model).__name__}: measure needs full attention in every layer (its cache cannot be rewound)"
            )
        return made

    # all subjects are fed vanilla's tokens, so that all do the same steps
    vanilla = subject(None)
    tokens_SR = vanilla.greedy(vanilla.prefill(), new_tokens)
    subjects = {VANILLA: vanilla}
    for name, policy in policies.items():
        subjects[name] = (
            subject(policy)
            # prompts that a policy has changed are other keys and values, which need a batch of their own
            if phases in ("prefill", "both")
            else _Subject(model, routers, policy, phases, layers, vanilla.batch, clock)
        )
        if subjects[name].batch is not vanilla.batch:
            subjects[name].prefill()

    def turn(each: _Subject) -> list[float]:
        times = from_first(each.run(tokens_SR), routers)  # ranks must stop at the same repeat
        on_step(len(prompts) * new_tokens)
        return times

    # apart from the timed rounds, which count nothing
    active = {name: each.mean_active(tokens_SR) for name, each in subjects.items()}
    # all subjects or none: a graph beside a launch from Python would compare nothing
    refused = None if capture is None else _capture(subjects.values(), capture, tokens_SR)
    turns = {name: partial(turn, each) for name, each in subjects.items()}
    times = timed(turns, repeats=repeats, max_repeats=max_repeats, precision=precision)
    alone = {name: partial(each.run, tokens_SR) for name, each in subjects.items()}
    # last, since the counter needs seconds of each subject alone
    joules = {} if meter is None else joules_per_token(alone, len(prompts) * new_tokens, meter, clock)
    return Timing(
        **times,
        active_experts=active,
        batch_size=len(prompts),
        new_tokens=new_tokens,
        graphed=capture is not None and refused is None,
        steps_note=refused,
        positions=tuple(sum(map(len, prompts)) + len(prompts) * (step + 1) for step in range(new_tokens)),
        joules_per_token=joules,
    )


def check_measure_arguments(
    policies: Collection[str], new_tokens: int, repeats: int, max_repeats: int, precision: float
) -> None:
    """ValueError naming what is wrong of what `measure` is asked."""
    if VANILLA in policies:
        raise ValueError(f"policies: the name {VANILLA} is taken; vanilla is always measured")
    for name, value in (("new_tokens", new_tokens), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if max_repeats < repeats:
        raise ValueError(f"max_repeats={max_repeats}: must be at least repeats={repeats}")
    if not 0 < precision < 1:
        raise ValueError(f"precision={precision}: must be above 0 and below 1")


class Repeated(TypedDict):
    """Fields of `Timing`."""

    step_ms: Times
    warmup_ms: Times
    stable: bool
    precision_reached: bool


def timed(turns: Mapping[str, Turn], *, repeats: int, max_repeats: int, precision: float) -> Repeated:
    """Fields of `Timing`: warm-up, then repeats, undisturbed by the garbage collector."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        warmup_ms, stable = warm_up(turns)
        step_ms, reached = repeat(turns, repeats=repeats, max_repeats=max_repeats, precision=precision)
    finally:
        if enabled:
            gc.enable()
    return {"step_ms": step_ms, "warmup_ms": warmup_ms, "stable": stable, "precision_reached": reached}


def _capture(subjects: Iterable[_Subject], capture: Capture, tokens_SR: Tensor) -> str | None:
    """Steps of all subjects as graphs; if one cannot be captured, of none, so that they stay comparable: then why."""
    subjects = list(subjects)
    try:
        for each in subjects:
            each.graphs = Graphs(capture, each.batch.num_rows, each.live.device)
            each.run(tokens_SR)
    except CannotRecord as error:
        for each in subjects:
            each.graphs = None
        return str(error)
    return None
