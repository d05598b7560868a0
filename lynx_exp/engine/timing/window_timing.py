"""Times of a run's own decode steps: windows of it, one after the other, each under vanilla and every policy in turn.

Within a window all subjects are fed the tokens that the run says, so that step by step they do the same work but for
the experts. Between windows lane, place, context and companions change, as they do in the run: an interval over windows
covers what an interval over repeats of one lane cannot.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lynx_exp.engine.decoding.graph import CannotRecord, Capture, Graphs
from lynx_exp.engine.timing.bandwidth import BandwidthUse, Hardware
from lynx_exp.engine.timing.energy import Meter, joules_per_token
from lynx_exp.engine.timing.measure import VANILLA
from lynx_exp.engine.timing.repeats import Interval, Times, is_narrow, ratio_interval, warm_up, window_times
from lynx_exp.engine.timing.step_bytes import StepBytes
from lynx_exp.engine.timing.window_batch import WindowBatch
from lynx_exp.engine.timing.windows import Window
from lynx_exp.models import Attachment, Router, Rows, count_active, from_first
from lynx_exp.routing import Phases, Policy


class StepTime(NamedTuple):
    """One timed decode step."""

    name: str
    """`vanilla`, or a policy's."""
    window: int
    """In the order in which they were timed."""
    repeat: int
    step: int
    """Of the window."""
    ms: float
    active_experts: float
    """Distinct experts, mean over layers."""


@dataclass(frozen=True, kw_only=True)
class WindowTiming:
    """Times of the steps of some windows of a run."""

    names: tuple[str, ...]
    """`vanilla` first."""
    windows: tuple[Window, ...]
    """Those that were timed, in this order."""
    rows: tuple[StepTime, ...]
    warmup_ms: Times
    """name -> round -> step, of the first window before its first repeat; part of no figure."""
    stable: bool
    """Whether the warm-up settled before it was cut off."""
    precision_reached: bool
    """Whether every policy's speed-up is known as well as was asked; True if there is none."""
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
    experts_note: str | None = None
    """A way that could not be tried, and why."""
    serving: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """name -> what a client of a serving engine would see, in milliseconds: TTFT, TPOT, ITL, E2E. Empty: no such
    engine."""
    hardware: Hardware | None = None
    """None: not known, or another process has the model."""
    joules_per_token: Mapping[str, float] = field(default_factory=dict)
    """Of the last window. Empty: nothing counts them."""

    def step_time_ms(self, name: str) -> Interval:
        """Time of a decode step of the run: mean over windows of their median step, 95 % interval over windows."""
        return ratio_interval([(own, 1.0) for _, own in self._pairs(name)])

    def speedup(self, name: str) -> Interval:
        """Vanilla's time over `name`'s on the same steps, with its 95 % interval over windows; above 1 is faster."""
        return ratio_interval(self._pairs(name))

    def active_experts(self, name: str) -> float:
        """Distinct experts per layer and timed step, mean."""
        return fmean(row.active_experts for row in self.rows if row.name == name)

    def bandwidth(self, name: str) -> BandwidthUse | None:
        """What `name`'s steps asked of the hardware."""
        return None if self.hardware is None else self.hardware.bandwidth(self._bytes_and_ms(self.hardware.bytes, name))

    def _bytes_and_ms(self, read: StepBytes, name: str) -> Iterator[tuple[float, float]]:
        for row in self.rows:
            if row.name == name:
                window, rows = self.windows[row.window], len(self.windows[row.window].steps[row.step])
                positions = rows * window.mean_context(row.step)
                yield read.of(active=row.active_experts, rows=rows, positions=positions), row.ms

    def _pairs(self, name: str) -> list[tuple[float, float]]:
        if name not in self.names:
            raise ValueError(f"name={name}: not measured; measured: {', '.join(self.names)}")
        return pairs_of(self.rows, name)


class Subject(Protocol):
    """What is timed in turns."""

    def enter(self, window: Window) -> list[float]:
        """Get ready for the window and run it once; active experts of each of its steps, mean over layers."""
        ...

    def settle(self) -> None:
        """Run what of the window it takes to leave the device's caches as its own run would, not as another subject's
        turn has left them."""
        ...

    def turn(self) -> list[float]:
        """Milliseconds of each step of the window."""
        ...


def pairs_of(rows: Sequence[StepTime], name: str) -> list[tuple[float, float]]:
    """(vanilla's time, the policy's) of each window."""
    times: dict[tuple[str, int], dict[int, list[float]]] = {}
    for row in rows:
        times.setdefault((row.name, row.window), {}).setdefault(row.repeat, []).append(row.ms)
    windows = sorted(window for own, window in times if own == name)
    return [
        window_times(list(times[VANILLA, window].values()), list(times[name, window].values())) for window in windows
    ]


def time_windows(
    subjects: Mapping[str, Subject],
    windows: Sequence[Window],
    *,
    repeats: int,
    least: int,
    precision: float,
    on_step: Callable[[int], None],
    enter: Callable[[Window], None] = lambda _window: None,
) -> WindowTiming:
    """Time the windows in their order: at least `least` of them, then on until the speed-up of every subject over the
    first has a 95 % interval of at most +- `precision`, relative, or none is left. Who goes first alternates from
    repeat to repeat and from window to window, so that a drift of the machine touches all alike. Each turn comes
    directly after untimed steps of the same subject: those that count its experts, or `settle`."""
    names = tuple(subjects)
    rows: list[StepTime] = []
    warmup_ms, stable, reached, turns = Times(), False, False, 0
    enabled = gc.isenabled()
    # a collection in the middle of a step would count as the policy's
    gc.collect()
    gc.disable()
    try:
        for number, window in enumerate(windows):
            enter(window)
            active: dict[str, list[float]] = {}
            if not number:
                # the first window alone needs a warm-up, for which all subjects must have been in it
                active = {name: subjects[name].enter(window) for name in names}
                warmup_ms, stable = warm_up({name: subject.turn for name, subject in subjects.items()})
            for repeat in range(repeats):
                for at in range(len(names)):
                    # who comes first rotates from turn to turn
                    name = names[(turns + at) % len(names)]
                    # directly before its turn, so that caches hold what this subject's own run would leave there
                    if name in active:
                        subjects[name].settle()
                    else:
                        active[name] = subjects[name].enter(window)
                    times = subjects[name].turn()
                    rows += [
                        StepTime(name, number, repeat, step, ms, active[name][step]) for step, ms in enumerate(times)
                    ]
                    on_step(sum(map(len, window.steps)))
                turns += 1
            turns += 1 - repeats % 2  # else, after an even number of repeats, every window began with the same one
            # whole windows only: each is timed equally often under every subject
            if number + 1 >= least:
                intervals = [ratio_interval(pairs_of(rows, name)) for name in names[1:]]
                reached = all(is_narrow(interval, precision) for interval in intervals)
                if reached:
                    break
    finally:
        if enabled:
            gc.enable()
    return WindowTiming(
        names=names,
        windows=tuple(windows[: number + 1]),
        rows=tuple(rows),
        warmup_ms=warmup_ms,
        stable=stable,
        precision_reached=reached,
    )


def check_windows(
    policies: Collection[str], windows: Sequence[Window], *, repeats: int, least: int, precision: float
) -> None:
    """ValueError naming what is wrong of what is asked."""
    if not windows:
        raise ValueError("windows: none given; there is nothing to time")
    for name, value in (("repeats", repeats), ("least", least)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if not 0 < precision < 1:
        raise ValueError(f"precision={precision}: must be above 0 and below 1")
    if VANILLA in policies:
        raise ValueError(f"policies: the name {VANILLA} is taken; vanilla is always measured")


class _Decoding:
    """Vanilla, or a policy, in the rows of a window that all subjects share."""

    def __init__(
        self,
        batch: WindowBatch,
        routers: Sequence[Router],
        policy: Policy | None,
        phases: Phases,
        layers: str | None,
        clock: Callable[[], float],
        capture: Capture | None,
    ) -> None:
        self._batch, self._routers, self._policy = batch, routers, policy
        self._phases, self._layers, self._clock, self._capture = phases, layers, clock, capture
        self._graphs: dict[int, Graphs] = {}
        """By the number of rows."""

    def enter(self, window: Window) -> list[float]:
        batch, counts = self._batch, []
        with Attachment(self._routers, self._policy, self._phases, self._layers) as attachment:
            for number in range(len(window.steps)):
                rows = batch.seat(number)
                attachment.rows, attachment.record = rows, []
                batch.step(number)
                active = count_active(attachment.record, rows.lane, rows.live, 1, self._routers[0].num_experts)
                counts.append(active.double().mean())
        if self._capture is not None:
            self._run()  # captures what is new
        return torch.stack(counts).tolist()

    def settle(self) -> None:
        self._run(steps=1)

    def turn(self) -> list[float]:
        return from_first(self._run(), self._routers)  # ranks must stop at the same window

    def _run(self, steps: int | None = None) -> list[float]:
        attachment = None
        if self._policy is not None:  # vanilla is the plain model, without a hook on any router
            attachment = Attachment(self._routers, self._policy, self._phases, self._layers).attach()
        times = []
        try:
            for number in range(len(self._batch.window.steps))[:steps]:
                rows = self._batch.seat(number)
                start = self._now()
                self._step(attachment, number, rows).argmax(-1)
                times.append((self._now() - start) * 1e3)
        finally:
            if attachment is not None:
                attachment.detach()
        return times

    def _step(self, attachment: Attachment | None, number: int, rows: Rows) -> Tensor:
        def announce(rows: Rows) -> None:
            if attachment is not None:
                attachment.rows = rows

        if self._capture is None:
            announce(rows)
            return self._batch.step(number)
        count = rows.live.shape[0]
        if count not in self._graphs:
            self._graphs[count] = Graphs(self._capture, count, self._batch.device)
        return self._batch.graphed_step(number, self._graphs[count], announce)

    def _now(self) -> float:
        if self._batch.device.type == "cuda":
            torch.cuda.synchronize(self._batch.device)
        return self._clock()


def measure_windows(
    model: PreTrainedModel,
    routers: Sequence[Router],
    make_batch: Callable[[int, int], WindowBatch],
    windows: Sequence[Window],
    policies: Mapping[str, Policy],
    phases: Phases,
    layers: str | None,
    *,
    repeats: int,
    least: int,
    precision: float,
    on_step: Callable[[int], None],
    clock: Callable[[], float] = time.perf_counter,
    capture: Capture | None = None,
    meter: Meter | None = None,
) -> WindowTiming:
    """`time_windows` of the model's own steps. `make_batch`: from rows and positions; `clock`: seconds; `capture`:
    makes graphs of the steps; None, or where one cannot be made: they are launched from Python. `meter`: of energy,
    where there is one; it is read over the last window."""
    check_windows(policies, windows, repeats=repeats, least=least, precision=precision)
    batch = make_batch(max(window.most_rows for window in windows), max(window.positions for window in windows))
    # graphs first; should one of them fail, everything again without
    ways, refused = (None,) if capture is None else (capture, None), None
    for way in ways:
        subjects: dict[str, Subject] = {
            name: _Decoding(batch, routers, policies.get(name), phases, layers, clock, way)
            for name in (VANILLA, *policies)
        }
        timed = partial(time_windows, subjects, windows, repeats=repeats, least=least, precision=precision)
        try:
            made = timed(on_step=on_step, enter=batch.enter)
        except CannotRecord as error:  # then none is, so that all stay comparable
            refused = str(error)
            continue
        tokens = sum(map(len, made.windows[-1].steps))
        turns = {name: subject.turn for name, subject in subjects.items()}
        joules = {} if meter is None else joules_per_token(turns, tokens, meter, clock)
        return replace(made, graphed=way is not None, joules_per_token=joules, steps_note=refused)
    raise AssertionError("unreachable")
