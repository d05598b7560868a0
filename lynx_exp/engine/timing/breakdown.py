"""Where the time of a decode step goes: attention, router, policy, experts, and the rest (norms, embedding, head).

Sections are timed by hooks around the model's own modules, which cost some microseconds each: a step is a little longer
here than in `measure`, and what that is shows in the rest. On a GPU sections are timed by events in the stream, without
waiting between them; steps are launched from Python, since a graph cannot be looked into.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.decoder import Decoder, DirectDecoder
from lynx_exp.engine.decoding.layer_types import Attention
from lynx_exp.engine.decoding.prompts import Prompt
from lynx_exp.engine.decoding.slot_batch import SlotBatch
from lynx_exp.engine.decoding.stream import MakeDecoder
from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.slots import Slots
from lynx_exp.models import Attachment, Router
from lynx_exp.routing import Phases, Policy, Routing

SECTIONS = ("attention", "router", "policy", "experts", "rest")
VANILLA = "vanilla"
WARM_UPS = 2
"""Rounds that do not count."""


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Milliseconds of a decode step by section."""

    ms: dict[str, dict[str, list[float]]]
    """name -> section -> repeat: mean over the steps. Sections add up to the step. `vanilla` first."""
    batch_size: int
    new_tokens: int


_Instant: TypeAlias = "float | torch.cuda.Event"
"""Seconds of the host's clock, or what the device records when it gets there."""


def _milliseconds(start: _Instant, stop: _Instant) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(stop, torch.cuda.Event), "both of one kind"
        return start.elapsed_time(stop)
    assert not isinstance(stop, torch.cuda.Event), "both of one kind"
    return (stop - start) * 1e3


class Stopwatch:
    """Time by section. One that begins inside another takes its time out of it."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._events = device.type == "cuda"
        self._clock = clock
        self._open: list[int] = []
        """Spans that have begun and not ended, the innermost last."""
        self._spans: list[tuple[str, str | None, _Instant, _Instant | None]] = []
        """(section, the one around it, begin, end)"""

    def _now(self) -> _Instant:
        if not self._events:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self, section: str) -> None:
        outer = self._spans[self._open[-1]][0] if self._open else None
        self._open.append(len(self._spans))
        self._spans.append((section, outer, self._now(), None))

    def end(self, section: str) -> None:
        now = self._now()  # before anything else, which would count as the section's
        at = self._open.pop()
        begun, outer, start, _ = self._spans[at]
        assert begun == section
        self._spans[at] = (begun, outer, start, now)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def read(self) -> dict[str, float]:
        """Milliseconds of each section since the last reading."""
        if self._events:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for name, outer, start, stop in self._spans:
            assert stop is not None, name
            spent = _milliseconds(start, stop)
            found[name] = found.get(name, 0.0) + spent
            if outer is not None:
                found[outer] = found.get(outer, 0.0) - spent
        self._spans = []
        return found


class _TimedAttachment(Attachment):
    """Says when the policy decides."""

    watch: Stopwatch

    def _route(self, router: Router, routing: Routing) -> Routing | None:
        with self.watch.section("policy"):
            return super()._route(router, routing)


def break_down(
    model: PreTrainedModel,
    routers: Sequence[Router],
    make_decoder: MakeDecoder,
    prompts: Sequence[Prompt],
    policies: Mapping[str, Policy],
    phases: Phases,
    layers: str | None,
    *,
    new_tokens: int,
    repeats: int,
) -> Breakdown:
    """All subjects are fed the tokens that vanilla generates, in rounds that each begin with another one."""
    watch = Stopwatch(model.get_input_embeddings().weight.device)
    batch = SlotBatch(model, partial(_watched, watch, make_decoder), prompts, new_tokens)
    subjects: dict[str, Policy | None] = {VANILLA: None, **policies}
    # the same tokens for all, so that all attend to as many positions
    fed = _greedy(batch, new_tokens)
    ms: dict[str, dict[str, list[float]]] = {name: {section: [] for section in SECTIONS} for name in subjects}
    for number in range(WARM_UPS + repeats):
        names = list(subjects)
        for turn in range(len(names)):
            # rotates, so that none has the same place every time
            name = names[(number + turn) % len(names)]
            found = _run(model, routers, batch, watch, subjects[name], phases, layers, fed)
            if number >= WARM_UPS:
                for section in SECTIONS:
                    ms[name][section].append(found.get(section, 0.0) / new_tokens)
    return Breakdown(ms=ms, batch_size=len(prompts), new_tokens=new_tokens)


def _greedy(batch: SlotBatch, steps: int) -> list[Tensor]:
    token_R, fed = batch.prefill().argmax(-1), []
    for _ in range(steps):
        fed.append(token_R)
        token_R = batch.step(token_R).argmax(-1)
    return fed


def _run(
    model: PreTrainedModel,
    routers: Sequence[Router],
    batch: SlotBatch,
    watch: Stopwatch,
    policy: Policy | None,
    phases: Phases,
    layers: str | None,
    fed: Sequence[Tensor],
) -> dict[str, float]:
    """Milliseconds of each section over all steps."""
    attachment = None
    if policy is not None:
        attachment = _TimedAttachment(routers, policy, phases, layers)
        attachment.watch = watch
        attachment.attach()
    # after the policy's own hooks, which then run inside the section of the router
    removers = _hooks(model, routers, watch)
    live = torch.ones(batch.num_rows, dtype=torch.bool, device=batch.lane.device)
    batch.rewind()
    # what the prefill left on the watch is not this run's
    watch.read()
    try:
        for token_R in fed:
            with watch.section("rest"):
                if attachment is not None:
                    attachment.rows = batch.step_rows(live)
                batch.step(token_R).argmax(-1)
        return watch.read()
    finally:
        for remove in removers:
            remove()
        if attachment is not None:
            attachment.detach()


def _watched(watch: Stopwatch, make: MakeDecoder, model: PreTrainedModel, slots: Slots, cursor: Cursor) -> Decoder:
    """A direct decoder computes attention itself: no module's hook would see it."""
    decoder = make(model, slots, cursor)
    if isinstance(decoder, DirectDecoder):
        attend = decoder._attend

        def timed(number: int, attention: Attention, given: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
            with watch.section("attention"):
                return attend(number, attention, given, cos, sin, mask)

        decoder._attend = timed  # type: ignore[method-assign]  # of this decoder alone
    return decoder


def _hooks(model: PreTrainedModel, routers: Sequence[Router], watch: Stopwatch) -> list[Callable[[], None]]:
    """Around each router (after the policy's own, so that the policy is inside), experts and attention."""
    around: list[tuple[nn.Module, str]] = []
    for router in routers:
        around.append((router.module, "router"))
        experts = getattr(router.parent, "experts", None)
        if isinstance(experts, nn.Module) and not isinstance(experts, nn.ModuleList):
            around.append((experts, "experts"))
    around += [
        (module, "attention")
        for module in model.modules()
        if "Attention" in type(module).__name__ and hasattr(module, "layer_idx")
    ]
    removers = []
    for module, section in around:
        removers.append(module.register_forward_pre_hook(lambda *_, name=section: watch.begin(name)).remove)
        removers.append(module.register_forward_hook(lambda *_, name=section: watch.end(name)).remove)
    return removers
