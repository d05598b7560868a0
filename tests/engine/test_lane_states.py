"""A lane that was stopped between two steps goes on, in another process's slots and beside other lanes, to what it
gives undisturbed: everything that it hands over, and every token."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_exp import Engine
from lynx_exp.engine import BatchPlan, LaneResult, Request
from lynx_exp.engine.decoding.lane import Job
from lynx_exp.engine.decoding.lane_state import LaneState, States
from lynx_exp.engine.kv_cache.kept import Part
from tests.engine import test_captured_stream as captured
from tests.engine import test_sampled_lanes as sampled
from tests.engine.conftest import VOCAB
from tests.engine.packing import LENGTHS, copies, jobs_of, watched, wide_jobs


class Stopped(KeyboardInterrupt):
    """A kill, right behind a step."""


@dataclass
class Memory:
    """Keeps the last states every `every` steps, as bytes and JSON, and stops the run behind step `stop`."""

    every: int = 1
    stop: int | None = None
    kept: dict[tuple[int, int], tuple[str, bytes]] = field(default_factory=dict)
    steps: int = 0
    gone_on: int = 0
    """Steps that lanes did not do again."""

    def found(self, job: int, lane: int) -> LaneState | None:
        if (job, lane) not in self.kept:
            return None
        about, tensors = self.kept[job, lane]
        loaded = torch.load(io.BytesIO(tensors))
        state = LaneState(
            lane=lane, about=json.loads(about), parts={name: Part.of(tensor) for name, tensor in loaded.items()}
        )
        self.gone_on += state.steps
        return state

    def between_steps(self, states: States) -> bool:
        self.steps += 1
        keeps = self.steps % self.every == 0
        if keeps:
            for job, state in states():
                tensors = {name: part.make().clone() for name, part in state.parts.items()}
                assert {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()} == {
                    name: (part.dtype, part.shape) for name, part in state.parts.items()
                }
                assert state.nbytes == sum(tensor.nbytes for tensor in tensors.values())
                file = io.BytesIO()
                torch.save(tensors, file)
                self.kept[job, state.lane] = json.dumps(dict(state.about)), file.getvalue()
        if self.steps == self.stop:
            raise Stopped
        return keeps


Found = dict[tuple[int, int], LaneResult]


def run(engine: Engine, jobs: Sequence[Job], keeper: Memory | None = None) -> Iterator[tuple[tuple[int, int], Any]]:
    for number, lane in engine.run_jobs(jobs, keeper=keeper):
        yield (number, lane.lane), lane


def stopped_and_gone_on(
    engine: Engine, jobs: Sequence[Job], stops: Sequence[int], every: int, rows: Sequence[int] = (64,)
) -> tuple[Found, int]:
    """What comes of it with a kill behind each of `stops` steps of an attempt, the attempts with so many rows in turn;
    and the steps that were not done again."""
    found: Found = {}
    kept: dict[tuple[int, int], tuple[str, bytes]] = {}
    gone_on = 0
    for attempt, stop in enumerate([*stops, None]):
        keeper = Memory(every=every, stop=stop, kept=kept)
        left = [
            replace(job, lanes=tuple(lane for lane in job.lanes if (number, lane) not in found))
            for number, job in enumerate(jobs)
        ]
        engine._stores.clear()
        engine.max_rows = rows[attempt % len(rows)]
        try:
            for key, lane in run(engine, left, keeper):
                assert key not in found
                found[key] = lane
        except Stopped:
            pass
        gone_on += keeper.gone_on
    return found, gone_on


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """12 prompts of 1 to 100 tokens."""
    rng = Random(3)
    return [
        Request(prompt_ids=tuple(rng.randrange(3, VOCAB) for _ in range(length)), max_new_tokens=2 + 2 * (number % 7))
        for number, length in enumerate(LENGTHS)
    ]


KINDS = {
    "data": st.data(),
    "samples": st.booleans(),
    "stops": st.lists(st.integers(1, 40), min_size=1, max_size=3),
    "every": st.integers(1, 4),
    "rows": st.lists(st.integers(1, 40), min_size=1, max_size=3),
    "eos": st.lists(st.integers(0, VOCAB - 1), max_size=60),
}
FEW = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(FEW, max_examples=40)


def same_lanes(
    engine: Engine,
    requests: list[Request],
    data: st.DataObject,
    samples: bool,
    stops: list[int],
    every: int,
    rows: list[int],
) -> None:
    """Any policies, phases, layers, batchings, fillers, sampling; kept every step or so, killed up to three times,
    beside other lanes at each attempt."""
    jobs = data.draw(sampled.jobs_of(engine, requests) if samples else jobs_of(engine, requests))
    whole = dict(run(engine, jobs))
    assert stopped_and_gone_on(engine, jobs, stops, every, rows)[0] == whole


def same_launched_lanes(engine: Engine, requests: list[Request], eos: list[int], **drawn: Any) -> None:
    with watched(engine, 64, eos):
        same_lanes(engine, requests, **drawn)


def same_recorded_lanes(engine: Engine, requests: list[Request], eos: list[int], leads: bool, **drawn: Any) -> None:
    """Also while a launch is on its way that nobody has read."""
    with captured.recording(engine, leads=leads, eos=eos) as steps:
        same_lanes(engine, requests, **drawn)
    assert steps.reason is None


@FEW
@given(**KINDS)
def test_any_jobs_stopped_anywhere_go_on_to_the_same_lanes(engine, requests, **drawn):
    same_launched_lanes(engine, requests, **drawn)


@pytest.mark.slow
@MANY
@given(**KINDS)
def test_many_jobs_stopped_anywhere(engine, requests, **drawn):
    same_launched_lanes(engine, requests, **drawn)


@FEW
@given(**KINDS, leads=st.booleans())
def test_recorded_steps_go_on_as_well(engine, requests, **drawn):
    same_recorded_lanes(engine, requests, **drawn)


@pytest.mark.slow
@MANY
@given(**KINDS, leads=st.booleans())
def test_many_recorded_jobs(engine, requests, **drawn):
    same_recorded_lanes(engine, requests, **drawn)


@pytest.mark.parametrize("every", [1, 5])
def test_no_step_before_the_last_that_was_kept_is_done_again(
    engine: Engine, requests: list[Request], every: int
) -> None:
    jobs = [engine.job(copies(requests), BatchPlan.continuous(12, 3, waves=4)), *wide_jobs(engine, requests, of=1)]
    with watched(engine, 64):
        whole = dict(run(engine, jobs))
        for stop in (4, 9):
            found, gone_on = stopped_and_gone_on(engine, jobs, [stop], every)
            assert found == whole
            assert (gone_on > 0) == (stop >= every)


def test_logits_are_those_of_the_run_undisturbed_to_the_last_bit(engine: Engine, requests: list[Request]) -> None:
    jobs = wide_jobs(engine, requests, of=4)
    with watched(engine, 64) as whole:
        list(run(engine, jobs))
    compared = 0
    with watched(engine, 64) as logits:
        stopped_and_gone_on(engine, jobs, [6], 1, (7, 40))
    for request, rows in logits.items():
        for mine, theirs in zip(rows[-3:], whole[request][-3:], strict=True):
            assert torch.equal(mine, theirs)
            compared += 1
    assert compared > 50


def test_what_was_kept_of_launched_steps_serves_recorded_ones(engine: Engine, requests: list[Request]) -> None:
    jobs = wide_jobs(engine, requests, of=2)
    whole = dict(run(engine, jobs))
    keeper = Memory(stop=5)
    with pytest.raises(Stopped):
        list(run(engine, jobs, keeper))
    with captured.recording(engine):
        again = Memory(kept=keeper.kept)
        assert {**whole, **dict(run(engine, jobs, again))} == whole
    assert again.gone_on > 0
