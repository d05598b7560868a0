"""Decode latency of policies in the serving engine: one lane alone, its steps timed from outside.

Every subject is made to say the tokens that vanilla says, past EOS and to a fixed length, as in `lynx_exp.engine`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

import numpy as np

from lynx_exp.engine import Request, Timing
from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.timing.measure import VANILLA, check_measure_arguments, timed
from lynx_exp.engine.timing.window_timing import WindowTiming, check_windows, time_windows
from lynx_exp.engine.timing.windows import Window
from lynx_exp.routing import Phases, Policy
from lynx_exp.vllm_backend.host import VllmHost
from lynx_exp.vllm_backend.submit_request import submit
from lynx_exp.vllm_plugin.plugin_settings import spec_of

PERCENTILES = {"median": 50, "p99": 99}


class _Windowed:
    """One policy; every turn is a lane of its own, whose prompts are the contexts of a window."""

    def __init__(self, subject: _Subject) -> None:
        self._subject = subject
        self.turns: list[tuple[float, list[float]]] = []
        """Milliseconds to the first token, and of the steps."""

    def enter(self, window: Window) -> list[float]:
        """`window`: in which nobody enters or leaves."""
        self._requests = []
        for seat in window.steps[0]:
            context = window.contexts[seat.row]
            fed = context[seat.position : seat.position + len(window.steps)]
            self._requests.append(
                Request(prompt_ids=context[: seat.position], continuation_ids=(*fed, fed[-1]))  # the last is not fed
            )
        before = len(self._subject.active)
        self._subject.run(self._requests, forced=True)
        return self._subject.active[before:]

    def settle(self) -> None:
        """Nothing: its prompts come before its steps in every turn."""

    def turn(self) -> list[float]:
        times, _ = self._subject.run(self._requests, forced=True)
        self.turns.append((self._subject.first_ms[-1], times))
        return times


def measure_windows(
    engine: VllmHost,
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
) -> WindowTiming:
    """As `engine.timing.window_timing.time_windows`, each window ending where somebody enters or leaves: a serving
    engine would compute the newcomer's prompt in that step. Its first tokens are those of prompts as long as a window's
    contexts."""
    check_windows(policies, windows, repeats=repeats, least=least, precision=precision)
    engine.counts()
    acts = {VANILLA: engine.act(None)}
    acts |= {name: engine.act(policy, phases, layers) for name, policy in policies.items()}
    subjects = {name: _Windowed(_Subject(engine, act, clock)) for name, act in acts.items()}
    timing = time_windows(
        subjects,
        [window.cut() for window in windows],
        repeats=repeats,
        least=least,
        precision=precision,
        on_step=on_step,
    )
    counted = repeats * len(timing.windows)
    turns = {name: subject.turns[-counted:] for name, subject in subjects.items()}
    return replace(
        timing,
        experts_implementation=engine.experts_implementation,
        serving={
            name: serving([first for first, _ in own], [steps for _, steps in own]) for name, own in turns.items()
        },
    )


class _Subject:
    """One policy; every turn is a lane of its own."""

    def __init__(self, engine: VllmHost, act: Act, clock: Callable[[], float]) -> None:
        self._engine, self._act, self._clock = engine, act, clock
        self.active: list[float] = []
        self.first_ms: list[float] = []
        """A turn: from handing the prompts over to the first token."""

    def run(self, requests: Sequence[Request], *, forced: bool) -> tuple[list[float], list[list[int]]]:
        """(milliseconds of each decode step, tokens of each request)."""
        act, engine, lane = self._act, self._engine, self._engine.new_lane()
        spec = spec_of(act.policy, act.phases, act.layers)
        tokens: dict[str, list[int]] = {}
        start = self._clock()
        for slot, request in enumerate(requests):
            tokens[submit(engine, request, spec | {"lane": lane, "slot": slot}, scored=forced)] = []
        times = []
        while engine.llm.llm_engine.has_unfinished_requests():
            for output in engine.llm.llm_engine.step():
                tokens[output.request_id] += output.outputs[0].token_ids
            now = self._clock()
            times.append((now - start) * 1e3)
            start = now
        counts = engine.counts()
        steps = len(requests[0].continuation_ids) if forced else requests[0].max_new_tokens
        widths = [count.step.live_rows for count in counts]
        if widths != [len(requests)] * (steps - 1) or len(times) != steps:
            raise RuntimeError(f"vllm did not run the {len(requests)} requests in step: {widths} rows a step")
        self.active += [fmean(count.after) for count in counts]
        self.first_ms.append(times[0])
        return times[1:], list(tokens.values())


def measure(
    engine: VllmHost,
    prompts: Sequence[Sequence[int]],
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
) -> Timing:
    """Time `new_tokens` decode steps of one lane holding all `prompts`, under vanilla and each policy in turn; and what
    a client of the engine would see, by the definitions of `vllm bench serve`."""
    check_measure_arguments(policies, new_tokens, repeats, max_repeats, precision)
    requests = [Request(prompt_ids=tuple(prompt), max_new_tokens=new_tokens + 1, ignore_eos=True) for prompt in prompts]
    engine.counts()
    subjects = {VANILLA: _Subject(engine, engine.act(None), clock)}
    subjects |= {name: _Subject(engine, engine.act(policy, phases, layers), clock) for name, policy in policies.items()}
    _, said = subjects[VANILLA].run(requests, forced=False)
    forced = [replace(request, continuation_ids=tuple(own)) for request, own in zip(requests, said, strict=True)]

    def turn(subject: _Subject) -> list[float]:
        times, _ = subject.run(forced, forced=True)
        on_step(len(prompts) * new_tokens)
        return times

    times = timed(
        {name: partial(turn, subject) for name, subject in subjects.items()},
        repeats=repeats,
        max_repeats=max_repeats,
        precision=precision,
    )
    return Timing(
        **times,
        active_experts={name: fmean(subject.active) for name, subject in subjects.items()},
        batch_size=len(prompts),
        new_tokens=new_tokens,
        experts_implementation=engine.experts_implementation,
        serving={
            name: serving(subject.first_ms[-len(times["step_ms"][name]) :], times["step_ms"][name])
            for name, subject in subjects.items()
        },
    )


def serving(first_ms: Sequence[float], steps_ms: Sequence[Sequence[float]]) -> dict[str, float]:
    """Mean, median and p99, in milliseconds: TTFT; TPOT, (E2E - TTFT) / (output tokens - 1); ITL, all gaps pooled; E2E.
    Requests of one lane see the same, so a repeat counts once."""
    metrics = {
        "ttft": list(first_ms),
        "tpot": [fmean(steps) for steps in steps_ms],
        "itl": [step for steps in steps_ms for step in steps],
        "e2e": [first + sum(steps) for first, steps in zip(first_ms, steps_ms, strict=True)],
    }
    found = {}
    for name, values in metrics.items():
        found[f"{name}_mean_ms"] = fmean(values)
        for label, percent in PERCENTILES.items():
            found[f"{name}_{label}_ms"] = float(np.percentile(values, percent))
    return found
