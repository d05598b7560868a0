"""Windows of a run: any step of any lane is rebuilt from its responses, and drawn as often as any other."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, LaneResult, LaneRun, Request, draw_windows
from lynx_exp.engine.timing.windows import Seat, at_context, window_of


def run_of(requests: list[Request], result: LaneResult) -> LaneRun:
    return LaneRun(
        subtask="t",
        lane=result.lane,
        prompts=[requests[number].prompt_ids for number in result.requests],
        tokens=result.token_ids,
        slots=result.slots,
        entered=result.entered,
    )


def requests_of(prompts: list[list[int]]) -> list[Request]:
    return [Request(prompt_ids=tuple(p), max_new_tokens=1 + n % 7, ignore_eos=True) for n, p in enumerate(prompts)]


@pytest.mark.parametrize(
    "plan", [BatchPlan.in_order(32, 8), BatchPlan.continuous(32, 3, seed=1)], ids=["static", "slots"]
)
def test_the_rows_of_every_step_are_those_that_the_lane_counted(
    engine: Engine, prompts: list[list[int]], plan: BatchPlan
) -> None:
    requests = requests_of(prompts)
    for result in engine.run_lanes(requests, plan, build_policy("lynx")):
        run = run_of(requests, result)
        assert run.num_steps == len(result.live_rows)
        assert [len(run.seats(step)) for step in range(run.num_steps)] == result.live_rows
        for step in range(run.num_steps):
            slots = [seat.slot for seat in run.seats(step)]
            assert slots == sorted(set(slots)), "two requests in one slot"


@pytest.mark.parametrize("waves", [1, 3])
def test_what_is_fed_again_activates_what_the_run_activated(
    engine: Engine, prompts: list[list[int]], waves: int
) -> None:
    """Vanilla, in every step of lanes whose rows come and go: same tokens, contexts and companions, so same experts."""
    requests = requests_of(prompts)
    for result in engine.run_lanes(requests, BatchPlan.continuous(32, 4, seed=2, waves=waves)):
        run = run_of(requests, result)
        whole = window_of(run, 0, run.num_steps)
        timing = engine.measure_windows([whole], policies={}, repeats=1, precision=0.5)
        means = [sum(layers) / len(layers) for layers in result.active_experts]
        assert [row.active_experts for row in timing.rows] == pytest.approx(means)


def test_scored_choices_are_windows_too(engine: Engine, prompts: list[list[int]]) -> None:
    requests = [
        Request(prompt_ids=tuple(p), continuation_ids=tuple(range(5, 6 + n % 5))) for n, p in enumerate(prompts[:12])
    ]
    plan = BatchPlan.continuous(12, 3, seed=0, waves=2)
    for result in engine.score_lanes(requests, plan):
        run = run_of(requests, result)
        assert [len(run.seats(step)) for step in range(run.num_steps)] == result.live_rows


def lane(lengths: list[int], entered: list[int], slots: list[int]) -> LaneRun:
    """Request r has prompt [100 r, 100 r + 1] and tokens 100 r + 10, ..."""
    return LaneRun(
        subtask="t",
        lane=4,
        prompts=[[100 * r, 100 * r + 1] for r in range(len(lengths))],
        tokens=[[100 * r + 10 + n for n in range(length)] for r, length in enumerate(lengths)],
        slots=slots,
        entered=entered,
    )


def test_a_window_holds_what_each_step_feeds() -> None:
    """Two slots: request 0 is fed in steps 0 and 1, request 1 in 0 to 3, request 2 in 2 and 3 in slot 0."""
    run = lane([3, 5, 3], [0, 0, 2], [0, 1, 0])
    window = window_of(run, 1, 3)
    assert window.contexts == ((0, 1, 10, 11), (100, 101, 110, 111, 112, 113), (200, 201, 210, 211))
    assert window.steps == (
        (Seat(0, 0, 3), Seat(1, 1, 3)),
        (Seat(2, 0, 2), Seat(1, 1, 4)),
        (Seat(2, 0, 3), Seat(1, 1, 5)),
    )
    assert [window.tokens(step) for step in range(3)] == [[11, 111], [210, 112], [211, 113]]
    assert [window.mean_context(step) for step in range(3)] == [4.0, 4.0, 5.0]
    assert len(window.cut().steps) == 1 and len(window_of(run, 2, 2).cut().steps) == 2


def test_contexts_can_be_set() -> None:
    window = at_context(window_of(lane([3, 5, 3], [0, 0, 2], [0, 1, 0]), 1, 3), 5)
    assert window.contexts[2] == (200, 201, 200, 201, 200, 210, 211)
    assert window.tokens(1) == [210, 112] and [seat.position for seat in window.steps[1]] == [5, 6]
    assert at_context(window_of(lane([3], [0], [0]), 1, 1), 2).contexts == ((0, 1, 11),)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 9))
def test_places_are_drawn_once_each_and_lie_in_their_lanes(lengths: list[int], steps: int, seed: int) -> None:
    runs = [lane([length], [0], [0]) for length in lengths]
    places = sum(max(length - steps, 0) for length in lengths)
    if not places:
        with pytest.raises(ValueError, match=f"measure.new_tokens={steps}: the longest lane of this run has "):
            list(draw_windows(runs, steps, 99, seed))
        return
    drawn = list(draw_windows(runs, steps, 99, seed))
    assert len(drawn) == places and all(len(window.steps) == steps for window in drawn)
    starts = Counter((len(window.contexts[0]), window.start) for window in drawn)
    assert starts == Counter(
        (2 + start + steps, start) for length in lengths for start in range(max(length - steps, 0))
    )


def test_draws_follow_the_seed_and_the_most_asked_for() -> None:
    runs = [lane([40], [0], [0]), lane([2], [0], [0])]
    first, again, other = (list(draw_windows(runs, 3, 10, seed)) for seed in (0, 0, 1))
    assert first == again != other and len(first) == 10
