"""Lanes of any policy, phase and shape side by side: each gives, bit for bit, what it gives alone; and a lane whose
slots are refilled does what a slow reference does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.models.experts import PER_EXPERT_EXACT
from lynx_exp.models.tiny import tiny_model
from lynx_exp.tasks.mini import held_out
from tests.engine.conftest import CONFIG, VOCAB, shape_of
from tests.engine.packing import LENGTHS, assert_packed_equals_alone, copies, jobs_of, run, watched, wide_jobs
from tests.routing.laws import REPRESENTATIVES, bound


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """12 prompts of 1 to 100 tokens."""
    rng = Random(3)
    return [
        Request(prompt_ids=tuple(rng.randrange(3, VOCAB) for _ in range(length)), max_new_tokens=2 + number % 7)
        for number, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def frequent(engine: Engine, requests: list[Request]) -> list[int]:
    """Tokens that the model likes to emit, most frequent first: as EOS they end responses early."""
    with watched(engine, 64):
        lanes = run(engine, [engine.job(requests, BatchPlan.in_order(len(requests), 4))])
    return [t for t, _ in Counter(t for lane in lanes.values() for ids in lane.token_ids for t in ids).most_common(24)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), max_rows=st.integers(1, 40))
def test_any_jobs_packed_equal_each_lane_alone(
    engine: Engine, requests: list[Request], frequent: list[int], data: st.DataObject, max_rows: int
) -> None:
    """Tokens, finish reasons, slots, live rows, active experts; and every bit of the logits."""
    eos = data.draw(st.lists(st.sampled_from(frequent), max_size=4))
    assert_packed_equals_alone(engine, data.draw(jobs_of(engine, requests)), max_rows, eos)


@pytest.mark.parametrize(
    "sizes",
    [
        dict(hidden_size=40, intermediate_size=25, num_attention_heads=2, num_key_value_heads=1, num_local_experts=7),
        dict(hidden_size=72, intermediate_size=33, num_attention_heads=4, num_key_value_heads=4, vocab_size=301),
    ],
    ids=["40", "72"],
)
def test_bits_do_not_depend_on_company_whatever_the_sizes(requests: list[Request], sizes: dict[str, int]) -> None:
    """Sizes that are no multiple of a vector, odd numbers of experts, heads with and without groups."""
    engine = Engine.from_config("mixtral", CONFIG | {"num_hidden_layers": 2} | sizes, seed=2)
    assert assert_packed_equals_alone(engine, wide_jobs(engine, requests, of=3), max_rows=37) > 80


FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {},  # its shared expert's gate has one output: a matrix product that treats its last rows otherwise
    "qwen3_moe": {},
    "olmoe": {},
    "granitemoe": {},
    "deepseek_v3": {"n_group": 1, "topk_group": 1},
    "glm4_moe": {"n_group": 1, "topk_group": 1},
}
SIGMOID = ("deepseek_v3", "glm4_moe")
"""Of T * E scores the last few, beyond a multiple of 32, get other bits: a policy's weights follow its rows."""


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_do_not_depend_on_company_in_other_families(requests: list[Request], family: str) -> None:
    model = tiny_model(family, **FAMILIES[family])
    model.set_experts_implementation(PER_EXPERT_EXACT)
    engine = Engine(model)
    assert engine.has_slots
    short = [replace(r, prompt_ids=tuple(t % 128 for t in r.prompt_ids)) for r in requests]
    jobs = wide_jobs(engine, short, of=4)
    assert assert_packed_equals_alone(engine, jobs, max_rows=37, bits=family not in SIGMOID) > 100


def test_bits_do_not_depend_on_company_over_many_columns() -> None:
    """Rows of 5 and of 700 positions, which attention reads in blocks of 512."""
    engine = Engine.from_config("mixtral", CONFIG | {"max_position_embeddings": 1024}, seed=2)
    rng = Random(5)
    requests = [
        Request(prompt_ids=tuple(rng.randrange(3, VOCAB) for _ in range(length)), max_new_tokens=5, ignore_eos=True)
        for length in (3, 90, 7, 510, 5, 18, 500, 4, 700, 16)
    ]
    assert assert_packed_equals_alone(engine, wide_jobs(engine, requests, of=4), max_rows=48) > 100


def test_longrope_stays_within_its_first_context(requests: list[Request]) -> None:
    """transformers picks its factors by the longest row of the physical batch, other lanes' too."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    engine = Engine.from_config("mixtral", CONFIG | {"head_dim": 16, "rope_parameters": rope}, seed=2)
    with pytest.raises(ValueError, match="the model has 32"):
        list(engine.run_jobs(wide_jobs(engine, requests, of=2)))


def test_the_bundled_model_gives_the_same_bits_in_any_company() -> None:
    engine = Engine.from_pretrained("lynx_tiny")
    prompts = [item.prompt for task in ("gsm8k", "wmt16") for item in held_out(f"mini_{task}")[:4]]
    requests = [Request(prompt_ids=engine.encode(p), max_new_tokens=3 + n % 3) for n, p in enumerate(prompts)]
    assert assert_packed_equals_alone(engine, wide_jobs(engine, requests, of=3), max_rows=30) > 40


def test_finished_at_the_first_token(engine: Engine, requests: list[Request]) -> None:
    """Nothing is decoded, in any batching; every request is answered."""
    once = copies(requests, max_new_tokens=1)
    jobs = [
        engine.job(once, BatchPlan.static(12, 5), build_policy("lynx_v1_latency", keep_experts=2)),
        engine.job(once, BatchPlan.continuous(12, 2, waves=3)),
        engine.job(once, BatchPlan.continuous(12, 4, waves=1), build_policy("random_keep"), "both"),
    ]
    for lane in run(engine, jobs).values():
        assert not lane.live_rows and not lane.active_experts
        assert all(len(ids) == 1 for ids in lane.token_ids)
    assert_packed_equals_alone(engine, jobs, 7)


def test_one_wave_is_static_for_every_policy(engine: Engine, requests: list[Request], frequent: list[int]) -> None:
    policies = [bound(policy, shape_of(engine)) for policy in REPRESENTATIVES]
    static, continuous = BatchPlan.static(12, 4, 7), BatchPlan.continuous(12, 4, 7, waves=1)
    jobs = [
        engine.job(requests, plan, policy, phases)  # type: ignore[arg-type]
        for plan in (static, continuous)
        for policy in policies
        for phases in ("decode", "both")
    ]
    with watched(engine, 64, frequent[1:3]):
        found = run(engine, jobs)
    half = len(jobs) // 2
    assert any(len(set(map(len, lane.token_ids))) > 1 for lane in found.values())
    for (number, lane), result in found.items():
        if number < half:
            assert result == found[number + half, lane]


@torch.inference_mode()
def decode_alone(engine: Engine, request: Request, eos: Sequence[int]) -> tuple[list[int], list[list[set[int]]]]:
    """transformers, one request, one token at a time: (tokens, for each decode step and layer the experts it ran)."""
    chosen: list[set[int]] = []
    hooks = [
        router.module.register_forward_hook(lambda _m, _i, out: chosen.append(set(out[2][-1].tolist())))
        for router in engine.routers
    ]
    cache = DynamicCache(config=engine.model.config)
    fed, tokens, steps = list(request.prompt_ids), list[int](), list[list[set[int]]]()
    while True:
        chosen.clear()
        logits = engine.model(input_ids=torch.tensor([fed]), past_key_values=cache, use_cache=True).logits
        if tokens:
            steps.append(list(chosen))
        tokens.append(int(logits[0, -1].argmax()))
        fed = tokens[-1:]
        if fed[0] in eos or len(tokens) == request.max_new_tokens:
            break
    for hook in hooks:
        hook.remove()
    return tokens, steps


@pytest.fixture(scope="module")
def alone(engine: Engine, requests: list[Request]) -> list[tuple[list[int], list[list[set[int]]]]]:
    """Each request by itself, far enough for any EOS to cut it."""
    return [decode_alone(engine, request, ()) for request in requests]


def refill(queue: Sequence[int], tokens: dict[int, list[int]], slots: int) -> tuple[dict[int, int], list[list[int]]]:
    """Seats as a server would give them, one step at a time: (request -> slot, for each step who is live)."""
    waiting, seated, slot_of, steps = list(queue), {}, {}, []
    left = {request: len(tokens[request]) - 1 for request in queue}
    while waiting or seated:
        while waiting and len(seated) < slots:  # all free slots are filled before any first token is looked at
            free = [slot for slot in range(slots) if slot not in seated.values()]
            entering = [(waiting.pop(0), slot) for slot in free[: len(waiting)]]
            for request, slot in entering:
                slot_of[request] = slot
                if left[request]:
                    seated[request] = slot
        if seated:
            steps.append(sorted(seated))
        for request in list(seated):
            left[request] -= 1
            if not left[request]:
                del seated[request]
    return slot_of, steps


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(12)),
    cut=st.integers(0, 12),
    slots=st.integers(1, 5),
    limits=st.lists(st.integers(1, 8), min_size=12, max_size=12),
    max_rows=st.integers(1, 12),
    data=st.data(),
)
def test_refilled_slots_equal_a_slow_reference(
    engine: Engine,
    requests: list[Request],
    alone: list,
    frequent: list[int],
    order: list[int],
    cut: int,
    slots: int,
    limits: list[int],
    max_rows: int,
    data: st.DataObject,
) -> None:
    """Whom transformers decodes alone, seated step by step: same tokens, slots, live rows and active experts."""
    eos = data.draw(st.lists(st.sampled_from(frequent), max_size=3))
    limited = [replace(r, max_new_tokens=min(r.max_new_tokens, n)) for r, n in zip(requests, limits, strict=True)]
    plan = BatchPlan(tuple(tuple(lane) for lane in (order[:cut], order[cut:]) if lane), slots=slots)
    with watched(engine, max_rows, eos):
        found = run(engine, [engine.job(limited, plan)])
    expected, reasons = {}, {}
    for number, request in enumerate(limited):
        ids = alone[number][0][: request.max_new_tokens]
        ends = [at for at, token in enumerate(ids) if token in eos]
        expected[number] = ids[: ends[0] + 1] if ends else ids
        reasons[number] = "eos" if ends else "length"
    for lane in found.values():
        queue = plan.lanes[lane.lane]
        assert lane.requests == queue
        assert lane.token_ids == [expected[number] for number in queue]
        assert lane.finish_reasons == [reasons[number] for number in queue]
        width = min(slots, len(queue))
        slot_of, steps = refill(queue, expected, width)
        assert lane.slots == tuple(slot_of[number] for number in queue)
        assert lane.live_rows == [len(live) for live in steps]
        assert max(lane.live_rows, default=0) <= width
        done, active = Counter[int](), []
        for at, live in enumerate(steps):
            here = [alone[number][1][done[number]] for number in live]
            active.append([len(set.union(*layer)) for layer in zip(*here, strict=True)])
            started = sum(number in live or done[number] > 0 or len(expected[number]) == 1 for number in queue)
            assert len(live) == width or started == len(queue), f"step {at}: a slot idles while requests wait"
            done.update(live)
        assert lane.active_experts == active


def test_fillers_keep_a_lane_full_until_its_last_request_ends(engine: Engine, requests: list[Request]) -> None:
    """And no longer: what is not finished then is cut. Who answers is told from who fills."""
    plan = BatchPlan.continuous(7, 3, waves=3).filled(range(7, 12), range(12), 2)
    same = [replace(r, max_new_tokens=2 + 3 * (n % 4), ignore_eos=True) for n, r in enumerate(requests)]
    (lane,) = run(engine, [engine.job(same, plan)]).values()
    assert lane.requests[: lane.own] == plan.lanes[0]
    assert lane.requests[lane.own :] == plan.fillers[0][: lane.fillers] and lane.fillers
    assert set(lane.live_rows) == {3}
    assert sum(lane.scored_rows) == sum(same[number].max_new_tokens - 1 for number in plan.lanes[0])
    assert min(lane.scored_rows) >= 1 and lane.scored_rows[-1] < 3
    assert set(lane.finish_reasons[: lane.own]) == {"length"} and "cut" in lane.finish_reasons[lane.own :]
    drained = run(engine, [engine.job(same, BatchPlan(plan.lanes, slots=3))])[0, 0]
    assert drained.live_rows == lane.scored_rows
    assert drained.token_ids == lane.token_ids[: lane.own]


def test_a_lane_with_fewer_requests_than_slots_is_filled(engine: Engine, requests: list[Request]) -> None:
    plan = BatchPlan(((0, 1),), slots=4, fillers=((2, 3, 4, 5),))
    same = copies(requests, max_new_tokens=4, ignore_eos=True)
    (lane,) = run(engine, [engine.job(same, plan)]).values()
    assert (lane.live_rows, lane.scored_rows, lane.slots) == ([4] * 3, [2] * 3, (0, 1, 2, 3))


def test_a_refilled_lane_is_full_until_its_queue_is_empty(engine: Engine, requests: list[Request]) -> None:
    """Equal lengths: four waves of three, three rows at every step."""
    plan, same = BatchPlan.continuous(12, 3, waves=4), copies(requests, max_new_tokens=5, ignore_eos=True)
    (lane,) = run(engine, [engine.job(same, plan)]).values()
    assert lane.live_rows == [3] * 16
    assert lane.slots == (0, 1, 2) * 4


def test_vanilla_in_slots_equals_model_generate(engine: Engine, requests: list[Request]) -> None:
    """Even with a queue, in two lanes beside a policy that prunes."""
    jobs = [
        engine.job(requests, BatchPlan.continuous(12, 2, waves=3)),
        engine.job(requests, BatchPlan.static(12, 6), build_policy("lynx_v1_latency", keep_experts=2)),
    ]
    found = run(engine, jobs)
    ours = {
        n: ids
        for (job, _), lane in found.items()
        if not job
        for n, ids in zip(lane.requests, lane.token_ids, strict=True)
    }
    for number, request in enumerate(requests):
        ids = torch.tensor([request.prompt_ids])
        made = engine.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new_tokens, do_sample=False
        )
        assert ours[number] == made[0, ids.shape[1] :].tolist()


def test_lanes_asked_for_again_need_no_room_for_their_neighbours(engine: Engine, requests: list[Request]) -> None:
    """Short prompts prefilled beside long ones, whose lanes are already done: as in a resumed cell."""
    plan = BatchPlan(((0, 2, 4), (6, 9)))
    for policy in (None, build_policy("lynx_v1_latency", keep_experts=2)):
        with watched(engine, 64):
            whole = {lane.lane: lane for lane in engine.run_lanes(requests, plan, policy)}
        with watched(engine, 64):
            assert list(engine.run_lanes(requests, plan, policy, lanes=[0])) == [whole[0]]


def test_an_abandoned_stream_leaves_no_trace(engine: Engine, requests: list[Request]) -> None:
    jobs = wide_jobs(engine, requests, of=4)
    lanes: Any = engine.run_jobs(jobs)
    next(lanes)
    lanes.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in engine.model.modules())
    assert not torch.is_inference_mode_enabled()
