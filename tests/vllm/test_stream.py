"""Lanes in a serving engine: whatever shares it, each comes out as if it had been alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_exp.engine import BatchPlan, LaneResult, Request
from lynx_exp.routing import RouterRule, Routing, StepContext, build_policy
from lynx_exp.vllm_backend.vllm_engine import VllmEngine
from lynx_exp.vllm_plugin.scheduled_rows import POSITIONS, PREFILL_KEY
from tests.vllm import fake_vllm
from tests.vllm.conftest import bring_up
from tests.vllm.fake_vllm import EOS, LAYERS, chosen_by_the_router, logits_of, token_after

POLICIES = [
    None,
    build_policy("no_drop"),
    build_policy("lynx", alpha=1.0, beta=1),
    build_policy("lynx_v1_latency", keep_experts=2),
    build_policy("random_keep", keep_experts=3, seed=5),
    build_policy("top_k", k=1),
]


def engine_of(**how) -> VllmEngine:
    return VllmEngine(fake_vllm.LLM(bring_up({"lanes": True}, **how)))


def reference(requests, plan, number, policy) -> LaneResult:
    """A static lane decoded alone, one step after another, by nothing of the backend."""
    members = plan.lanes[number]
    tokens = {
        each: [
            token_after(requests[each].prompt_ids, len(requests[each].prompt_ids) - 1, stock(requests[each].prompt_ids))
        ]
        for each in members
    }
    finish = {each: ended(requests[each], tokens[each]) for each in members}
    live_rows, active, changed = [], [], []
    while live := [each for each in members if finish[each] is None]:
        layers, own = [], []
        for layer in range(LAYERS):
            positions = [len(requests[each].prompt_ids) + len(tokens[each]) - 1 for each in live]
            rows = zip(live, positions, strict=True)
            logits = torch.stack([logits_of(requests[each].prompt_ids, at, layer) for each, at in rows])
            weights, experts = (part.flip(-1) for part in chosen_by_the_router(logits))
            routing = Routing(logits=logits, experts=experts.long(), weights=weights)
            if policy is not None:
                routing = policy(
                    routing,
                    StepContext(
                        layer=layer,
                        decode=torch.ones(len(live), dtype=torch.bool),
                        lane=torch.zeros(len(live), dtype=torch.long),
                        live=torch.ones(len(live), dtype=torch.bool),
                        num_lanes=1,
                        key=torch.tensor([(number << 32) + len(live_rows)]),
                        row=torch.tensor([members.index(each) << 32 for each in live]),
                    ),
                    RouterRule(),
                )
            layers.append(routing)
            own.append(experts.tolist())
        live_rows.append(len(live))
        active.append([len(made.experts[made.weights != 0].unique()) for made in layers])
        changed.append(
            [sum(map(gone, before, made.experts, made.weights)) for before, made in zip(own, layers, strict=True)]
        )
        for at, each in enumerate(live):
            ran = [made.experts[at] for made in layers]
            tokens[each].append(token_after(requests[each].prompt_ids, positions[at], ran))
        finish |= {each: ended(requests[each], tokens[each]) for each in live}
    return LaneResult(
        lane=number,
        thoughts=[None] * len(members),
        thought_tokens=[None] * len(members),
        requests=members,
        slots=tuple(range(len(members))),
        entered=(0,) * len(members),
        token_ids=[tokens[each] for each in members],
        texts=["".join(chr(65 + token) for token in tokens[each]) for each in members],
        finish_reasons=[finish[each] for each in members],
        live_rows=live_rows,
        scored_rows=live_rows,
        active_experts=active,
        changed=changed,
    )


def gone(before, experts, weights):
    """Of a row's choice, how many experts do not run for it."""
    return len(set(before) - set(experts[weights != 0].tolist()))


def stock(prompt):
    return [chosen_by_the_router(logits_of(prompt, len(prompt) - 1, layer)[None])[1][0] for layer in range(LAYERS)]


def ended(request, tokens):
    if tokens[-1] == EOS and not request.ignore_eos:
        return "eos"
    return "length" if len(tokens) == request.max_new_tokens else None


def requests_of(lengths):
    return [
        Request(prompt_ids=tuple(range(3 + n, 3 + n + length)), max_new_tokens=1 + (5 * n) % 9, ignore_eos=n % 4 == 0)
        for n, length in enumerate(lengths)
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=10),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    policies=st.lists(st.sampled_from(POLICIES), min_size=1, max_size=3),
    max_rows=st.integers(5, 16),
    second=st.booleans(),
    pad=st.sampled_from([1, 4]),
)
def test_every_lane_is_what_it_is_alone(fake, lengths, sizes, policies, max_rows, second, pad):
    engine = engine_of(max_rows=max_rows, budget=60, second=second, pad=pad)
    requests = requests_of(lengths)
    jobs = [
        engine.job(requests, BatchPlan.static(len(requests), size, seed=size), policy)
        for size in sizes
        for policy in policies
    ]
    notes: list[str] = []
    found = list(engine.run_jobs(jobs, on_note=notes.append))
    assert sorted((job, lane.lane) for job, lane in found) == [
        (number, lane) for number, job in enumerate(jobs) for lane in range(len(job.plan.lanes))
    ]
    for number, lane in found:
        job = jobs[number]
        assert lane == reference(requests, job.plan, lane.lane, job.act.policy)
    assert notes == [] and not engine.llm.llm_engine.held


@pytest.mark.parametrize("phases", ["prefill", "both"])
def test_what_a_policy_changes_in_prompts_is_counted(fake, phases):
    engine, policy, requests = engine_of(), POLICIES[3], requests_of([4, 5, 6])
    (lane,) = engine.run_lanes(requests, BatchPlan.in_order(3, 3), policy, phases)
    rows = [(slot, at) for slot, request in enumerate(requests) for at in range(len(request.prompt_ids))]
    expected = []
    for layer in range(LAYERS):
        logits = torch.stack([logits_of(requests[slot].prompt_ids, at, layer) for slot, at in rows])
        weights, experts = (part.flip(-1) for part in chosen_by_the_router(logits))
        step = StepContext(
            layer=layer,
            decode=torch.zeros(len(rows), dtype=torch.bool),
            lane=torch.zeros(len(rows), dtype=torch.long),
            live=torch.ones(len(rows), dtype=torch.bool),
            num_lanes=1,
            key=torch.tensor([PREFILL_KEY]),
            row=torch.tensor([slot * POSITIONS + at for slot, at in rows]),
        )
        made = policy(Routing(logits=logits, experts=experts.long(), weights=weights), step, RouterRule())
        expected.append(sum(map(gone, experts.tolist(), made.experts, made.weights)))
    assert (lane.prompt_tokens, lane.prompt_changed) == (15, expected) and all(expected)
    assert any(map(any, lane.changed)) == (phases == "both")


@pytest.mark.parametrize("disturb", ["preempted", "one prompt a step"])
def test_a_lane_that_fell_out_of_step_runs_again_alone(fake, disturb):
    engine = engine_of()
    requests = requests_of([4, 5, 6, 3, 2, 5])
    requests = [Request(prompt_ids=request.prompt_ids, max_new_tokens=7, ignore_eos=True) for request in requests]
    plan = BatchPlan.in_order(6, 3)
    inner = engine.llm.llm_engine
    if disturb == "preempted":
        inner.preempt_at = {3}
    else:
        inner.one_prompt_a_step = True
        undisturbed = inner.step

        def step():
            inner.one_prompt_a_step = inner.steps < 2
            return undisturbed()

        inner.step = step
    notes: list[str] = []
    found = {
        lane.lane: lane for _, lane in engine.run_jobs([engine.job(requests, plan, POLICIES[2])], on_note=notes.append)
    }
    assert notes and all("vLLM did not run its requests in step; it runs again, alone" in note for note in notes)
    assert found == {number: reference(requests, plan, number, POLICIES[2]) for number in range(2)}


def test_a_lane_that_never_runs_in_step_is_an_error(fake):
    engine = engine_of()
    engine.llm.llm_engine.one_prompt_a_step = True
    requests = [Request(prompt_ids=(n, n), max_new_tokens=5, ignore_eos=True) for n in range(3)]
    with pytest.raises(RuntimeError, match="lane 0: vLLM did not run its requests in step even alone"):
        list(engine.run_jobs([engine.job(requests, BatchPlan.in_order(3, 3))]))
    assert not engine.llm.llm_engine.held, "nothing is left behind"


@pytest.mark.parametrize("policy", POLICIES[:4])
def test_continuous_lanes_keep_their_slots_filled(fake, policy):
    engine = engine_of()
    requests = [Request(prompt_ids=(n, n + 1), max_new_tokens=2 + n % 4, ignore_eos=True) for n in range(11)]
    plan = BatchPlan.continuous(11, 3, seed=1, waves=2)
    lanes = {lane.lane: lane for lane in engine.run_lanes(requests, plan, policy)}
    for number, members in enumerate(plan.lanes):
        lane = lanes[number]
        assert sorted(lane.requests) == sorted(members) and lane.requests[:3] == members[:3]
        assert [len(tokens) for tokens in lane.token_ids] == [requests[each].max_new_tokens for each in lane.requests]
        assert max(lane.live_rows) == min(3, len(members)) and set(lane.slots) <= {0, 1, 2}
        assert sum(lane.live_rows) == sum(requests[each].max_new_tokens - 1 for each in members)
        assert len(lane.active_experts) == len(lane.live_rows)
        if policy is not None and policy.name == "lynx_v1_latency":
            assert {
                n for step, live in zip(lane.active_experts, lane.live_rows, strict=True) for n in step if live > 1
            } == {2}


def test_scoring_decodes_what_it_is_given(fake):
    engine = engine_of()
    requests = [Request(prompt_ids=(n, 4), continuation_ids=tuple(range(10 + n, 14 + n + n % 2))) for n in range(5)]
    plan = BatchPlan.in_order(5, 2)
    lanes = sorted(engine.score_lanes(requests, plan, POLICIES[3]), key=lambda lane: lane.lane)
    assert [lane.token_ids for lane in lanes] == [
        [list(requests[each].continuation_ids) for each in members] for members in plan.lanes
    ]
    for lane in lanes:
        assert lane.finish_reasons == ["scored"] * len(lane.requests) and lane.texts == [""] * len(lane.requests)
        assert lane.logprobs is not None and lane.greedy is not None and all(value < 0 for value in lane.logprobs)
        longest = max(len(requests[each].continuation_ids) for each in lane.requests)
        assert lane.live_rows[0] == len(lane.requests) and len(lane.live_rows) == longest - 1
    with pytest.raises(ValueError, match="scoring=prefill: only with backend=transformers"):
        list(engine.score_lanes(requests, plan, scoring="prefill"))


def test_log_likelihoods_are_sums_over_the_continuation(fake, monkeypatch):
    engine = engine_of()
    monkeypatch.setattr(fake_vllm, "token_after", lambda *_: 6)  # logprob -0.25, rank 1
    (lane,) = engine.score_lanes([Request(prompt_ids=(1,), continuation_ids=(7, 8, 9))], BatchPlan.in_order(1, 1))
    assert lane.logprobs == [-0.75] and lane.greedy == [True]


def test_vllm_that_says_something_else_is_an_error(fake):
    engine = engine_of()
    inner = engine.llm.llm_engine
    step = inner.step

    def lies():
        said = step()
        for output in said:
            output.outputs[0].token_ids[0] = 49
            output.outputs[0].logprobs = [{49: output.outputs[0].logprobs[0].popitem()[1]}]
        return said

    inner.step = lies
    with pytest.raises(RuntimeError, match="token 0 is not the one that it was made to say"):
        list(engine.score_lanes([Request(prompt_ids=(1,), continuation_ids=(7, 8))], BatchPlan.in_order(1, 1)))


@pytest.mark.parametrize(
    ("how", "size", "says"),
    [
        ({"max_rows": 2}, 3, "batch_size=3: pack.max_rows=2"),
        ({"blocks": 5}, 3, "need 24 positions of the cache, which has 20; raise pack.memory_gib"),
        ({"budget": 8}, 3, "its prompts have 12 tokens.*raise vllm.max_num_batched_tokens=8"),
    ],
)
def test_lanes_that_cannot_run_are_refused_before_any_does(fake, how, size, says):
    engine = engine_of(**how)
    requests = [Request(prompt_ids=(1, 2, 3, 4), max_new_tokens=3) for _ in range(size)]
    with pytest.raises(ValueError, match=says):
        list(engine.run_jobs([engine.job(requests, BatchPlan.in_order(size, size))]))
    assert engine.llm.llm_engine.steps == 0


def test_too_long_for_the_context(fake):
    engine = engine_of()
    with pytest.raises(ValueError, match="request 0: prompt and response need 203 positions; the model has 200"):
        list(engine.run_lanes([Request(prompt_ids=(1, 2, 3), max_new_tokens=200)], BatchPlan.in_order(1, 1)))


def test_a_policy_that_the_model_cannot_run_is_refused_at_once(fake):
    engine = engine_of()
    with pytest.raises(ValueError, match="keep_experts=9"):
        engine.act(build_policy("lynx_v1_latency", keep_experts=9))
    with pytest.raises(ValueError, match="layers=5"):
        engine.act(build_policy("lynx"), layers="5")


def test_leaving_half_way_leaves_nothing_behind(fake):
    engine = engine_of(max_rows=4)
    requests = [Request(prompt_ids=(n,), max_new_tokens=4, ignore_eos=True) for n in range(8)]
    lanes: Any = engine.run_lanes(requests, BatchPlan.in_order(8, 2))
    first = next(lanes)
    lanes.close()
    assert not engine.llm.llm_engine.held
    again = list(engine.run_lanes(requests, BatchPlan.in_order(8, 2)))
    assert first in again and len(again) == 4


def test_ranks_that_differ_are_found(fake):
    engine = engine_of()
    ask = engine.llm.collective_rpc
    engine.llm.collective_rpc = lambda method, args=(): [*ask(method, args), "another"]
    with pytest.raises(RuntimeError, match="the ranks' answers to lynx_steps differ"):
        engine.counts()


def test_workers_without_the_plugin_are_found(fake):
    def ask(method, args=()):
        raise NotImplementedError(f"Method {method!r} is not implemented.")

    llm = fake_vllm.LLM(fake_vllm.Engine())
    llm.collective_rpc = ask
    with pytest.raises(ValueError, match="its workers know no policies: lynx_exp must be installed"):
        VllmEngine(llm)


def test_the_knob_is_turned_on_given_continuations(fake):
    engine = engine_of()
    requests = [Request(prompt_ids=(n,), continuation_ids=tuple(range(5, 12))) for n in range(8)]
    found = engine.match_active(build_policy("lynx_v1_latency", keep_experts=4), 3, requests, BatchPlan.in_order(8, 4))
    assert (found.parameter, found.value, found.active) == ("keep_experts", 3, 3.0)


def test_measuring_is_paired_and_serves_by_the_usual_definitions(fake):
    engine = engine_of()
    ticks = iter(range(10**6))
    from lynx_exp.vllm_backend.vllm_timing import measure

    timing = measure(
        engine,
        [(1, 2), (3, 4), (5, 6)],
        {"two": POLICIES[3]},
        "decode",
        None,
        new_tokens=4,
        repeats=2,
        max_repeats=2,
        precision=0.5,
        on_step=lambda tokens: None,
        clock=lambda: float(next(ticks)),
    )
    assert timing.step_ms == {name: [[1000.0] * 4] * 2 for name in ("vanilla", "two")}
    assert timing.active_experts["two"] == 2.0 < timing.active_experts["vanilla"]
    serving = timing.serving["two"]
    assert serving["ttft_mean_ms"] == serving["tpot_median_ms"] == serving["itl_p99_ms"] == 1000.0
    assert serving["e2e_mean_ms"] == 5000.0


def test_windows_of_a_run_are_timed_until_somebody_enters_or_leaves(fake):
    engine = engine_of()
    ticks = iter(range(10**6))
    from lynx_exp.engine import LaneRun
    from lynx_exp.engine.timing.windows import window_of
    from lynx_exp.vllm_backend.vllm_timing import measure_windows

    run = LaneRun(
        subtask="t",
        lane=3,
        prompts=[(1, 2), (3, 4), (5, 6)],
        tokens=[[7, 8, 9], [10, 11, 12, 13, 14, 15], [16, 17, 18]],
        slots=[0, 1, 0],
        entered=[0, 0, 2],
    )
    timing = measure_windows(
        engine,
        [window_of(run, 0, 4), window_of(run, 2, 2)],
        {"two": POLICIES[3]},
        "decode",
        None,
        repeats=2,
        least=2,
        precision=0.5,
        on_step=lambda tokens: None,
        clock=lambda: float(next(ticks)),
    )
    assert [len(window.steps) for window in timing.windows] == [2, 2]
    assert len(timing.rows) == 2 * 2 * 2 * 2 and {row.ms for row in timing.rows} == {1000.0}
    assert timing.active_experts("two") == 2.0 < timing.active_experts("vanilla")
    assert timing.speedup("two") == (1.0, 1.0, 1.0) and timing.serving["two"]["tpot_median_ms"] == 1000.0


def test_serving_metrics_in_closed_form():
    from lynx_exp.vllm_backend.vllm_timing import serving

    found = serving([10.0, 20.0], [[1.0, 3.0], [5.0, 7.0]])
    assert (found["ttft_mean_ms"], found["tpot_mean_ms"], found["itl_mean_ms"], found["e2e_mean_ms"]) == (15, 4, 4, 23)
    assert (found["tpot_median_ms"], found["itl_median_ms"]) == (4, 4)
    assert found["itl_p99_ms"] == pytest.approx(6.94)
