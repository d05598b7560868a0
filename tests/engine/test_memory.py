"""What fits, what is refused, and running out of memory in the middle."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lynx_exp.engine.decoding.entering as entering
from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, LaneResult, Request
from lynx_exp.engine.decoding.lane import Job
from lynx_exp.engine.decoding.prompts import prefill as prefill_prompts
from lynx_exp.engine.kv_cache.memory import GIB, OutOfMemory, is_out_of_memory, slots_that_fit
from lynx_exp.engine.kv_cache.slots import round_up


@given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 1000), st.integers(0, 100_000))
def test_slots_that_fit(wanted: int, widest: int, row_bytes: int, budget: int) -> None:
    """No more than wanted or than the budget holds, unless a lane is wider."""
    if budget < widest * row_bytes:
        with pytest.raises(ValueError, match=rf"batch_size={widest}: .* batch_size of {budget // row_bytes} at most"):
            slots_that_fit(wanted, widest, row_bytes, budget)
        return
    slots = slots_that_fit(wanted, widest, row_bytes, budget)
    assert slots * row_bytes <= budget and slots >= widest
    assert slots == max(min(wanted, budget // row_bytes), widest)


@pytest.mark.parametrize(
    "error,expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("not enough memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.fixture(scope="module")
def requests(prompts: list[list[int]]) -> list[Request]:
    return [Request(prompt_ids=tuple(p), max_new_tokens=3 + n % 5) for n, p in enumerate(prompts[:16])]


def test_a_lane_that_does_not_fit_is_refused_with_the_largest_that_does(
    engine: Engine, requests: list[Request]
) -> None:
    positions = round_up(max(len(request.prompt_ids) + request.max_new_tokens for request in requests))
    row = positions * 2 * 3 * 2 * 16 * 4  # positions, keys and values, layers, heads, their size, bytes
    engine._stores.clear()
    engine.memory_gib = 4 / 3 * 3.5 * row / GIB
    try:
        fits = list(engine.run_lanes(requests, BatchPlan.static(16, 3)))
        assert len(fits) == 6
        with pytest.raises(ValueError, match=r"batch_size=4: .* a batch_size of 3 at most"):
            list(engine.run_lanes(requests, BatchPlan.static(16, 4)))
        with pytest.raises(ValueError, match=r"batch_size=16: .* a batch_size of 3 at most"):
            list(engine.run_lanes(requests, BatchPlan.continuous(16, 16, waves=1)))
        queued = list(engine.run_lanes(requests, BatchPlan.continuous(16, 3, waves=4)))
        assert sum(len(lane.requests) for lane in queued) == 16
    finally:
        engine.memory_gib = None
        engine._stores.clear()
    roomy = {lane.lane: lane for lane in engine.run_lanes(requests, BatchPlan.static(16, 3))}
    assert roomy == {lane.lane: lane for lane in fits}


@contextmanager
def failing(engine: Engine, fails: Any, max_rows: int) -> Iterator[list[tuple[int, int]]]:
    """(attempt, rows) of each step; `fails(attempt, step, rows)` says what to raise instead of it, if anything.
    Dead rows do not count. At most one attempt's slots live at a time."""
    kind, rows, steps = engine._make_decoder(), engine.max_rows, list[tuple[int, int]]()
    slots: list[weakref.ref] = []

    class Decoder:
        def __init__(self, model: Any, made: Any, cursor: Any) -> None:
            gc.collect()
            assert not any(old() is not None for old in slots), "slots of a failed attempt are still there"
            slots.append(weakref.ref(made))
            self.inner, self.attempt, self.steps = kind(model, made, cursor), len(slots), 0

        def step(self, token_R: Any) -> Any:
            self.steps += 1
            steps.append((self.attempt, int((token_R != 0).sum())))
            error = fails(self.attempt, self.steps, steps[-1][1])
            if isinstance(error, type):
                raise error("planted")  # a new one: what is raised keeps its frames, and their slots
            if error is not None:
                raise error
            return self.inner.step(token_R)

    engine._decoder, engine.max_rows = Decoder, max_rows  # type: ignore[assignment]
    try:
        yield steps
    finally:
        engine._decoder, engine.max_rows = kind, rows


def three_jobs(engine: Engine, requests: list[Request]) -> list[Job]:
    return [
        engine.job(requests, BatchPlan.static(16, 4)),
        engine.job(requests, BatchPlan.continuous(16, 3, waves=2), build_policy("lynx_v1_latency", keep_experts=2)),
        engine.job(requests, BatchPlan.static(16, 2, 1), build_policy("random_keep"), "both"),
    ]


def collect(engine: Engine, jobs: list[Job], notes: list[str]) -> dict[tuple[int, int], LaneResult]:
    found: dict[tuple[int, int], LaneResult] = {}
    for number, lane in engine.run_jobs(jobs, on_note=notes.append):
        assert (number, lane.lane) not in found, "a lane came twice"
        found[number, lane.lane] = lane
    return found


@pytest.mark.parametrize("at", [1, 2, 5, 9])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_in_the_middle_goes_on_with_half_the_rows(
    engine: Engine, requests: list[Request], at: int, error: type[Exception]
) -> None:
    jobs, notes = three_jobs(engine, requests), list[str]()
    undisturbed = collect(engine, jobs, notes)
    assert not notes and len(undisturbed) == 4 + 3 + 8
    with failing(engine, lambda attempt, step, rows: error if (attempt, step) == (1, at) else None, 32) as steps:
        assert collect(engine, jobs, notes) == undisturbed
    assert notes == ["out of memory; going on with 16 rows at a time"]
    assert max(rows for attempt, rows in steps if attempt == 1) > 16
    assert max(rows for attempt, rows in steps if attempt == 2) <= 16
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in engine.model.modules())
    assert not torch.is_inference_mode_enabled()


def test_it_halves_until_it_fits_down_to_the_widest_lane(engine: Engine, requests: list[Request]) -> None:
    """More than 4 rows never fit; the widest lane has 4."""
    jobs, notes = three_jobs(engine, requests), list[str]()
    undisturbed = collect(engine, jobs, notes)

    def fails(_attempt: int, _step: int, rows: int) -> type[Exception] | None:
        return torch.OutOfMemoryError if rows > 4 else None

    with failing(engine, fails, 23):
        assert collect(engine, jobs, notes) == undisturbed
    assert [int(note.split()[6]) for note in notes] == [11, 5, 4]


def test_rows_that_were_never_there_are_not_halved(engine: Engine, requests: list[Request]) -> None:
    """Two lanes of 4 in an engine of 256 rows: 8 rows did not fit, 4 are tried next."""
    notes: list[str] = []
    plan = BatchPlan.static(8, 4)
    undisturbed = {lane.lane: lane for lane in engine.run_lanes(requests[:8], plan)}
    with failing(engine, lambda attempt, step, rows: torch.OutOfMemoryError if rows > 4 else None, 256):
        found = collect(engine, [engine.job(requests[:8], plan)], notes)
    assert {lane: result for (_, lane), result in found.items()} == undisturbed
    assert notes == ["out of memory; going on with 4 rows at a time"]


def test_the_last_lane_alone_is_tried_once_more(engine: Engine, requests: list[Request]) -> None:
    """It fails among the slots of 16 rows, of which the other 12 are done, and fits by itself."""
    notes: list[str] = []
    mixed = [replace(request, max_new_tokens=2 if number < 12 else 8) for number, request in enumerate(requests)]
    jobs = [engine.job(mixed, BatchPlan.in_order(16, 4))]
    undisturbed = collect(engine, jobs, [])
    with failing(engine, lambda attempt, step, rows: MemoryError if (attempt, step) == (1, 5) else None, 64) as steps:
        assert collect(engine, jobs, notes) == undisturbed
    assert [rows for attempt, rows in steps if attempt == 2] == [4] * 7
    assert len(notes) == 1


@pytest.mark.parametrize("max_rows", [1, 4, 6, 64])
def test_a_lane_that_never_fits_is_named(engine: Engine, requests: list[Request], max_rows: int) -> None:
    """Lanes done before are handed over; the others are not silently lost."""
    wide = replace(engine.job(requests, BatchPlan.static(16, 4)), lanes=(0, 1, 2))
    with (
        failing(engine, lambda attempt, step, rows: torch.OutOfMemoryError if rows > 3 else None, max_rows) as steps,
        pytest.raises(OutOfMemory, match=r"out of memory with 4 rows; .*batch_size=4") as caught,
    ):
        collect(engine, [wide], [])
    assert steps[-1][1] == 4
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert not is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("planted"), ValueError("planted"), KeyboardInterrupt("planted")])
def test_other_exceptions_pass_through(engine: Engine, requests: list[Request], error: BaseException) -> None:
    notes: list[str] = []
    with (
        failing(engine, lambda attempt, step, rows: error if step == 3 else None, 32) as steps,
        pytest.raises(type(error), match="planted") as caught,
    ):
        collect(engine, three_jobs(engine, requests), notes)
    assert caught.value is error and not notes
    assert {attempt for attempt, _ in steps} == {1}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in engine.model.modules())


def test_out_of_memory_in_a_prefill(engine: Engine, requests: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a policy that prefills for itself, when the second lane enters."""
    jobs, notes = [three_jobs(engine, requests)[2]], list[str]()
    undisturbed = collect(engine, jobs, notes)
    own, calls = prefill_prompts, list[int]()

    def prefill(*given: Any) -> Any:
        calls.append(len(given[1]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("planted")
        return own(*given)

    monkeypatch.setattr(entering, "prefill", prefill)
    assert collect(engine, jobs, notes) == undisturbed
    assert len(notes) == 1
