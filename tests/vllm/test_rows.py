"""Who the rows are: against one row at a time, for any schedule."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.engine.kv_cache.batch import POSITIONS as ENGINE_POSITIONS
from lynx_exp.engine.kv_cache.batch import PREFILL_KEY as ENGINE_PREFILL_KEY
from lynx_exp.routing import build_policy
from lynx_exp.vllm_plugin.plugin_settings import VANILLA, Acting
from lynx_exp.vllm_plugin.scheduled_rows import POSITIONS, PREFILL_KEY, Seats, lanes_of_requests, one_lane

LYNX = Acting(policy=build_policy("lynx"))


def test_keys_are_those_of_the_transformers_engine():
    assert (POSITIONS, PREFILL_KEY) == (ENGINE_POSITIONS, ENGINE_PREFILL_KEY)


@st.composite
def schedules(draw):
    """(prompts, lanes of the requests, steps): each step lists (request, tokens computed before, tokens scheduled);
    prompts in pieces, decode steps, and now and then everything of a request computed again."""
    prompts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    lanes = [draw(st.integers(0, 2)) for _ in prompts]
    computed, lengths = [0] * len(prompts), list(prompts)
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        step = []
        for request in draw(st.lists(st.integers(0, len(prompts) - 1), unique=True, min_size=1)):
            if draw(st.integers(0, 9)) == 0:
                computed[request] = 0
            scheduled = draw(st.integers(1, lengths[request] - computed[request]))
            step.append((request, computed[request], scheduled))
            computed[request] += scheduled
            if computed[request] == lengths[request]:
                lengths[request] += 1
        steps.append(step)
    return prompts, lanes, steps


@settings(deadline=None)
@given(schedules())
def test_every_row_of_every_schedule(schedule):
    prompts, lanes, steps = schedule
    seats = Seats(lanes_of_requests({}))
    where = [{"lane": lane, "slot": n, "policy": "vanilla"} for n, lane in enumerate(lanes)]
    asked = [SimpleNamespace(extra_args={"lynx": each}) for each in where]
    seats.update([(str(n), prompt, asked[n]) for n, prompt in enumerate(prompts)], [])
    seen: set[tuple[int, int]] = set()
    keys: set[tuple[int, int]] = set()
    for step in steps:
        rows = seats.step([str(n) for n, _, _ in step], [c for _, c, _ in step], [s for _, _, s in step])
        at = 0
        per_lane: dict[int, list[int]] = {lanes[n]: [] for n, _, _ in step}
        repeated = dict.fromkeys(per_lane, 0)
        for request, before, count in step:
            for position in range(before, before + count):
                new = (request, position) not in seen
                decode = position >= prompts[request] and new
                assert rows.decode_T[at] == decode
                assert rows.lanes[rows.place_T[at]].lane == lanes[request]
                assert rows.row_T[at] == request * POSITIONS + (0 if decode else position)
                if decode:
                    per_lane[lanes[request]].append(position - prompts[request])
                repeated[lanes[request]] += not new
                seen.add((request, position))
                at += 1
        assert at == len(rows.decode_T)
        assert [lane.lane for lane in rows.lanes] == sorted(per_lane)
        for lane in rows.lanes:
            tokens = per_lane[lane.lane]
            assert (lane.live_rows, lane.repeated) == (len(tokens), repeated[lane.lane])
            assert (lane.first, lane.last) == ((min(tokens), max(tokens)) if tokens else (-1, -1))
        new_keys = {(lane.lane, int(key)) for lane, key in zip(rows.lanes, rows.key_G, strict=True)}
        assert keys.isdisjoint(new_keys), "a (lane, step) has a key of its own"
        keys |= new_keys


def test_the_key_of_a_decode_step_is_that_of_the_transformers_engine():
    seats = Seats(one_lane(LYNX))
    seats.update([("a", 3, None)], [])
    found = [seats.step(["a"], [before], [count]).key_G.tolist() for before, count in [(0, 2), (2, 1), (3, 1), (4, 1)]]
    assert found == [[PREFILL_KEY], [PREFILL_KEY + 1], [0], [1]]


@pytest.mark.parametrize(("phases", "wanted"), [("decode", [0, 0, 1]), ("prefill", [1, 1, 0]), ("both", [1, 1, 1])])
def test_acting_rows_are_those_of_the_phases(phases, wanted):
    acting = Acting(policy=build_policy("lynx"), phases=phases)
    seats = Seats(one_lane(acting))
    seats.update([("old", 1, None), ("new", 2, None)], [])
    seats.step(["old"], [0], [1])
    rows = seats.step(["new", "old"], [0, 1], [2, 1])
    assert rows.acting_T(acting).tolist() == wanted
    assert not rows.acting_T(LYNX if phases != "decode" else VANILLA).any()


def test_a_one_token_piece_of_a_prompt_is_prefill_and_a_one_token_prompt_too():
    seats = Seats(one_lane(LYNX))
    seats.update([("piece", 5, None), ("short", 1, None)], [])
    assert not seats.step(["piece"], [0], [4]).decode_T.any()
    assert seats.step(["piece", "short"], [4, 0], [1, 1]).decode_T.tolist() == [False, False]
    assert seats.step(["short", "piece"], [1, 5], [1, 1]).decode_T.tolist() == [True, True]


def test_prompts_of_which_the_beginning_is_cached():
    seats = Seats(one_lane(LYNX))
    seats.update([("a", 10, None)], [])
    assert not seats.step(["a"], [8], [2]).decode_T.any()
    assert seats.step(["a"], [10], [1]).decode_T.all()


def test_a_lane_has_one_policy():
    seats = Seats(lanes_of_requests({}))
    given = [{"lane": 1, "policy": "vanilla"}, {"lane": 1, "policy": "lynx"}]
    seats.update([(str(n), 1, SimpleNamespace(extra_args={"lynx": each})) for n, each in enumerate(given)], [])
    with pytest.raises(ValueError, match="lane 1: its requests name several policies"):
        seats.step(["0", "1"], [0, 0], [1, 1])


def test_who_left_is_forgotten_and_lanes_count_anew_when_all_have():
    seats = Seats(one_lane(LYNX))
    seats.update([("a", 1, None)], [])
    seats.step(["a"], [0], [1])
    seats.step(["a"], [1], [1])
    seats.update([], ["a"])
    with pytest.raises(KeyError):
        seats.step(["a"], [2], [1])
    seats.update([("a", 1, None)], [])
    assert np.array_equal(seats.step(["a"], [0], [1]).key_G, [PREFILL_KEY])
