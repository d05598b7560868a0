"""Lanes that sample: a request draws the same tokens packed or alone, in any batching, whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request, Sampling
from lynx_exp.engine.decoding.lane import Job
from lynx_exp.engine.requests.sampling import Draw
from tests.engine.conftest import CONFIG, VOCAB, shape_of
from tests.engine.packing import LENGTHS, assert_packed_equals_alone, run, watched, wide_jobs
from tests.routing.laws import REPRESENTATIVES, bound

SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.7, seed=1),
    Sampling(temperature=1.5, top_k=20, seed=2),
    Sampling(top_p=0.8, seed=2**64 - 1),
    Sampling(temperature=0.9, top_k=50, top_p=0.95, seed=4),
)
KINDS = pytest.mark.parametrize("sampling", SAMPLINGS, ids=["plain", "cool", "top_k", "top_p", "all"])


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """12 prompts of 1 to 100 tokens, of which every third is continued greedily."""
    rng = Random(3)
    return [
        Request(
            prompt_ids=tuple(rng.randrange(3, VOCAB) for _ in range(length)),
            max_new_tokens=2 + number % 7,
            sampling=None if number % 3 == 2 else SAMPLINGS[number % 5].with_request_seed(number),
        )
        for number, length in enumerate(LENGTHS)
    ]


def sampled(requests: Sequence[Request], sampling: Sampling | None) -> list[Request]:
    """The same, all drawing so, each with noise of its own."""
    return [replace(r, sampling=sampling and sampling.with_request_seed(number)) for number, r in enumerate(requests)]


@st.composite
def jobs_of(draw: st.DrawFn, engine: Engine, requests: Sequence[Request]) -> list[Job]:
    jobs = []
    for _ in range(draw(st.integers(1, 4))):
        policy = bound(draw(st.sampled_from(REPRESENTATIVES)), shape_of(engine))
        phases = draw(st.sampled_from(["decode", "prefill", "both"]))
        size, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2))
        if draw(st.booleans()):
            plan = BatchPlan.static(len(requests), size, seed)
        else:
            plan = BatchPlan.continuous(len(requests), size, seed, waves=draw(st.integers(1, 3)))
        kinds = draw(st.lists(st.sampled_from([None, *SAMPLINGS]), min_size=12, max_size=12))
        own = [
            replace(r, sampling=kind and kind.with_request_seed(number))
            for number, (r, kind) in enumerate(zip(requests, kinds, strict=True))
        ]
        jobs.append(engine.job(own, plan, policy, phases))
    return jobs


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), max_rows=st.integers(1, 40), eos=st.lists(st.integers(0, VOCAB - 1), max_size=60))
def test_any_sampling_jobs_packed_equal_each_lane_alone(
    engine: Engine, requests: list[Request], data: st.DataObject, max_rows: int, eos: list[int]
) -> None:
    """Tokens, finish reasons, slots, live rows, active experts; and every bit of the logits."""
    assert_packed_equals_alone(engine, data.draw(jobs_of(engine, requests)), max_rows, eos)


def test_one_wave_is_static_for_every_policy(engine: Engine, requests: list[Request]) -> None:
    policies = [bound(policy, shape_of(engine)) for policy in REPRESENTATIVES]
    plans = BatchPlan.static(12, 4, 7), BatchPlan.continuous(12, 4, 7, waves=1)
    jobs = [engine.job(requests, plan, policy) for plan in plans for policy in policies]
    with watched(engine, 64, range(0, VOCAB, 9)):
        found = run(engine, jobs)
    assert {reason for lane in found.values() for reason in lane.finish_reasons} == {"eos", "length"}
    for (number, lane), result in found.items():
        if number < len(policies):
            assert result == found[number + len(policies), lane]


@torch.inference_mode()
def decode_alone(engine: Engine, request: Request) -> list[int]:
    """transformers' forward pass, one request, one token at a time."""
    cache = DynamicCache(config=engine.model.config)
    draw = Draw.of([request.sampling])
    fed, tokens = list(request.prompt_ids), list[int]()
    while len(tokens) < request.max_new_tokens and 2 not in tokens:
        logits = engine.model(input_ids=torch.tensor([fed]), past_key_values=cache, use_cache=True).logits[:, -1]
        chosen = logits.argmax(-1) if draw is None else draw(logits, [len(tokens)])
        tokens.append(int(chosen))
        fed = tokens[-1:]
    return tokens


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_vanilla_draws_what_a_slow_reference_draws(engine: Engine, requests: list[Request], batch_size: int) -> None:
    expected = [decode_alone(engine, request) for request in requests]
    for plan in (BatchPlan.static(12, batch_size, 5), BatchPlan.continuous(12, batch_size, 5, waves=3)):
        found = {
            number: ids
            for lane in engine.run_lanes(requests, plan)
            for number, ids in zip(lane.requests, lane.token_ids, strict=True)
        }
        assert [found[number] for number in range(12)] == expected


def test_the_seed_decides_from_the_first_token_on(engine: Engine, requests: list[Request]) -> None:
    """Jobs over the same prompts share their prefill, never what one of them drew from it."""
    plan = BatchPlan.static(12, 4)
    kinds = [Sampling(seed=1), Sampling(seed=2), Sampling(seed=1), None]
    jobs = [engine.job(sampled(requests, kind), plan) for kind in kinds]
    with watched(engine, 64):
        found = run(engine, jobs)
    tokens = [[ids for lane in range(3) for ids in found[job, lane].token_ids] for job in range(4)]
    assert tokens[0] == tokens[2]
    for one, other in ((0, 1), (0, 3), (1, 3)):
        assert sum(a[0] != b[0] for a, b in zip(tokens[one], tokens[other], strict=True)) > 8
    with watched(engine, 64):
        greedy = run(engine, jobs[3:])
    assert tokens[3] == [ids for lane in range(3) for ids in greedy[0, lane].token_ids]


@KINDS
def test_generate_draws_by_the_number_of_the_prompt(
    engine: Engine, prompts: list[list[int]], sampling: Sampling
) -> None:
    """In any batch size and order; another seed draws otherwise."""

    def tokens(batch_size: int, seed: int | None = None, kind: Sampling = sampling) -> list[list[int]]:
        return engine.generate(
            prompts[:12], batch_size=batch_size, max_new_tokens=6, ignore_eos=True, seed=seed, sampling=kind
        ).token_ids

    alone = tokens(1)
    assert tokens(5) == tokens(12, seed=3) == alone
    requests = [
        Request(prompt_ids=tuple(p), max_new_tokens=6, ignore_eos=True, sampling=sampling.with_request_seed(number))
        for number, p in enumerate(prompts[:12])
    ]
    assert [lane.token_ids[0] for lane in engine.run_lanes(requests, BatchPlan.in_order(12, 1))] == alone
    other = tokens(5, kind=replace(sampling, seed=77))
    assert sum(a != b for a, b in zip(alone, other, strict=True)) > 8


def test_drawing_the_likeliest_is_greedy(engine: Engine, prompts: list[list[int]]) -> None:
    policy = build_policy("lynx_v1_latency", keep_experts=3)
    greedy = engine.generate(prompts, batch_size=4, policy=policy, max_new_tokens=8)
    for sampling in (Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(temperature=1e-6)):
        run = engine.generate(prompts, batch_size=4, policy=policy, max_new_tokens=8, sampling=sampling)
        assert run.token_ids == greedy.token_ids
        assert run.active_experts == greedy.active_experts


def test_greedy_runs_draw_nothing(engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_given: object) -> None:
        raise AssertionError("a greedy run drew")

    monkeypatch.setattr(Draw, "__init__", refused)
    engine._stores.clear()
    engine.generate(prompts[:6], batch_size=3, max_new_tokens=4)
    with pytest.raises(AssertionError, match="drew"):
        engine.generate(prompts[:6], batch_size=3, max_new_tokens=4, sampling=Sampling())


@pytest.mark.parametrize("policy", [None, build_policy("lynx_v1_latency", keep_experts=3)], ids=["vanilla", "pruned"])
def test_padded_lanes_packed_equal_lanes_alone(requests: list[Request], policy: object) -> None:
    """Models whose rows start together: some rows finish early and leave, others go on with their own noise."""
    engine = Engine.from_config("mixtral", CONFIG, seed=0)
    engine.has_slots = False  # as for a cache that rows cannot enter at any time
    plan = BatchPlan.static(12, 4, 1)
    together = {lane.lane: lane for lane in engine.run_lanes(requests, plan, policy)}  # type: ignore[arg-type]
    engine.max_rows = 1
    for lane in engine.run_lanes(requests, plan, policy):  # type: ignore[arg-type]
        assert lane == together[lane.lane]
    if policy is None:
        expected = [decode_alone(engine, request) for request in requests]
        for lane in together.values():
            assert lane.token_ids == [expected[number] for number in lane.requests]
    greedy = {lane.lane: lane for lane in engine.run_lanes(sampled(requests, None), plan, policy)}  # type: ignore[arg-type]
    assert any(greedy[number].token_ids != together[number].token_ids for number in greedy)


def test_other_kinds_of_lanes(engine: Engine, requests: list[Request]) -> None:
    """Policies that add slots, prune, act in both phases; static and continuous side by side."""
    assert assert_packed_equals_alone(engine, wide_jobs(engine, requests, of=4), max_rows=37) > 80
