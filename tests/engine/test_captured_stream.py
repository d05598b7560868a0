"""A stream of recorded steps gives, lane by lane, all that a stream of steps launched from Python gives: tokens, finish
reasons, slots, live rows, active experts, changed assignments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_exp import Engine
from lynx_exp.engine import BatchPlan, Request, Sampling
from lynx_exp.engine.decoding import captured_stream
from lynx_exp.engine.decoding.captured_stream import CapturedStream, width_of
from lynx_exp.engine.decoding.graph import Capture, Made, Step, rerun
from lynx_exp.engine.decoding.seating import seats_that_fit
from lynx_exp.engine.decoding.steps import Steps
from lynx_exp.engine.kv_cache.seats import Readback
from lynx_exp.engine.requests.argmax import NotANumber
from lynx_exp.models.experts import PER_EXPERT_EXACT
from lynx_exp.models.tiny import tiny_model
from lynx_exp.tasks.mini import held_out
from tests.engine.conftest import CONFIG, VOCAB, shape_of
from tests.engine.packing import LENGTHS, copies, jobs_of, run, wide_jobs
from tests.engine.tape import Tape, as_on_a_device
from tests.routing.laws import REPRESENTATIVES, bound


@contextmanager
def recording(
    engine: Engine, capture: Capture = rerun, leads: bool | None = True, max_rows: int = 16, eos: Sequence[int] = ()
) -> Iterator[Steps]:
    before = engine.steps, engine.max_rows, engine._stopper.eos_ids
    steps = engine.steps = Steps("auto", engine.model, engine.routers)
    steps.record_with(capture)
    steps.always_leads, engine.max_rows, engine._stopper.eos_ids = leads, max_rows, frozenset(eos)
    try:
        yield steps
    finally:
        engine.steps, engine.max_rows, engine._stopper.eos_ids = before


@contextmanager
def ending_at(engine: Engine, eos: Sequence[int]) -> Iterator[None]:
    before = engine._stopper.eos_ids
    engine._stopper.eos_ids = frozenset(eos)
    try:
        yield
    finally:
        engine._stopper.eos_ids = before


def assert_recorded_equals_launched(engine: Engine, jobs: Sequence[Any], eos: Sequence[int] = (), **how: Any) -> Steps:
    with ending_at(engine, eos):
        launched = run(engine, jobs)
    with recording(engine, eos=eos, **how) as steps:
        assert run(engine, jobs) == launched
    assert steps.reason is None and steps.record()["ran"] == "captured"  # type: ignore[index]
    return steps


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
    """Tokens that the model likes to emit: as EOS they end responses early."""
    lanes = run(engine, [engine.job(requests, BatchPlan.in_order(len(requests), 4))])
    return sorted({token for lane in lanes.values() for ids in lane.token_ids for token in ids[1:]})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), max_rows=st.integers(1, 40), leads=st.sampled_from([True, False, None]))
def test_any_jobs_recorded_equal_those_launched(
    engine: Engine,
    requests: list[Request],
    frequent: list[int],
    data: st.DataObject,
    max_rows: int,
    leads: bool | None,
) -> None:
    """Any policies, phases, layers, batchings, fillers, ends; whether tokens are read behind or at once."""
    eos = data.draw(st.lists(st.sampled_from(frequent), max_size=4))
    jobs = data.draw(jobs_of(engine, requests))
    steps = assert_recorded_equals_launched(engine, jobs, eos, leads=leads, max_rows=max_rows)
    assert steps.rows is None or steps.rows >= max_rows and steps.rows & (steps.rows - 1) == 0


@pytest.mark.parametrize("leads", [True, False], ids=["behind", "at_once"])
def test_recorded_without_python_equals_launched(
    engine: Engine, requests: list[Request], frequent: list[int], leads: bool
) -> None:
    """The operations alone are done again, as a graph does: all policies in one step, lanes that refill and drain."""
    engine = Engine.from_config("mixtral", CONFIG, seed=0, experts_implementation="batched_mm")
    # the torch definition of coverage looks at the device after each round; its kernel does not
    chosen = [bound(policy, shape_of(engine)) for policy in REPRESENTATIVES if policy.name != "coverage"]
    filled = BatchPlan.continuous(8, 3, 0, waves=3).filled(range(8, 12), range(12), 0)
    jobs = [engine.job(copies(requests), filled, policy) for policy in chosen]
    jobs += [engine.job(copies(requests), BatchPlan.static(12, 4, 1)), *wide_jobs(engine, requests, of=2)]
    tape, eos = Tape(), frequent[::5]
    with ending_at(engine, eos):
        launched = run(engine, jobs)
    assert len({reason for lane in launched.values() for reason in lane.finish_reasons}) == 3
    with recording(engine, tape, leads, max_rows=40, eos=eos) as steps, as_on_a_device():
        assert run(engine, jobs) == launched
    assert steps.reason is None and 0 < tape.captured < 25


def test_a_step_that_waits_for_the_device_is_not_recorded(engine: Engine, requests: list[Request]) -> None:
    """The loop over active experts does, on a CPU; the run goes on as it would have, and says so."""
    jobs, notes = wide_jobs(engine, requests, of=2), list[str]()
    launched = run(engine, jobs)
    with recording(engine, Tape()) as steps:
        found = {(number, lane.lane): lane for number, lane in engine.run_jobs(jobs, on_note=notes.append)}
    assert found == launched
    assert steps.capture is None and "Waited" in str(steps.reason)
    assert notes == [f"steps are launched from Python: {steps.reason}"]


def test_where_it_was_asked_for_a_recording_that_fails_is_an_error(engine: Engine, requests: list[Request]) -> None:
    with recording(engine, Tape()) as steps:
        steps.mode = "captured"
        with pytest.raises(ValueError, match="steps=captured: .*Waited"):
            run(engine, wide_jobs(engine, requests, of=1))


def test_a_later_recording_that_fails_costs_no_lane(
    engine: Engine, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second width cannot be recorded, when some lanes are done already."""
    monkeypatch.setattr(captured_stream, "LEAST_WIDTH", 32)
    made = iter(range(100))

    def once(step: Step) -> Step:
        if next(made):
            raise RuntimeError("planted")
        return rerun(step)

    short = [
        replace(r, prompt_ids=r.prompt_ids[:9], max_new_tokens=40 if n == 11 else 3, ignore_eos=True)
        for n, r in enumerate(requests)
    ]
    jobs = [engine.job(short, BatchPlan.continuous(12, 2, waves=2))]
    launched = run(engine, jobs)
    with recording(engine, once, max_rows=2) as steps:
        found = run(engine, jobs)
    assert found == launched and steps.reason == "RuntimeError: planted"


@pytest.mark.parametrize("lanes", [None, [0]])
def test_out_of_memory_goes_on_with_half_the_rows(
    engine: Engine, requests: list[Request], lanes: list[int] | None
) -> None:
    """Also where one lane is left: a recorded step has all its seats, whoever is there."""
    sizes = []

    def short(step: Step) -> Step:
        sizes.append(step()[0].shape[0])
        if sizes[-1] > 4:
            raise torch.OutOfMemoryError("planted")
        return rerun(step)

    jobs, notes = [engine.job(requests, BatchPlan.static(12, 3), lanes=lanes)], list[str]()
    launched = run(engine, jobs)
    with recording(engine, short, max_rows=12) as steps:
        found = {(number, lane.lane): lane for number, lane in engine.run_jobs(jobs, on_note=notes.append)}
    assert found == launched and steps.reason is None and steps.rows == 4
    assert sizes[0] == 16 and len(notes) == 2


def test_what_came_of_a_run_is_not_the_next_ones(engine: Engine, requests: list[Request]) -> None:
    with recording(engine) as steps:
        run(engine, [engine.job(requests, BatchPlan.static(12, 3))])
        assert steps.record() is not None and steps.rows == 16
        steps.forget()
        assert steps.record() is None


def test_the_next_step_is_launched_before_tokens_are_read(
    engine: Engine, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a request that ends on its own costs its lane one launch in vain; one whose length is up, none."""
    events: list[str] = []
    launch, read = CapturedStream._launch, Readback.read
    monkeypatch.setattr(CapturedStream, "_launch", lambda self: (events.append("launch"), launch(self))[1])
    monkeypatch.setattr(Readback, "read", lambda self: (events.append("read"), read(self))[1])
    same = copies(requests[:4], max_new_tokens=6, ignore_eos=True)
    with recording(engine, leads=True):
        (lane,) = run(engine, [engine.job(same, BatchPlan.static(4, 4))]).values()
    assert events == ["launch", *["launch", "read"] * 4, "read"] and len(lane.live_rows) == 5
    events.clear()
    eos = lane.token_ids[0][2]
    ends = [ids.index(eos) if eos in ids else 5 for ids in lane.token_ids]
    with recording(engine, leads=True, eos=[eos]):
        (shorter,) = run(engine, [engine.job(copies(same, ignore_eos=False), BatchPlan.static(4, 4))]).values()
    assert shorter.finish_reasons[0] == "eos" and events.count("launch") > len(shorter.live_rows) == max(ends)
    events.clear()
    with recording(engine, leads=False):
        run(engine, [engine.job(same, BatchPlan.static(4, 4))])
    assert events == ["launch", "read"] * 5


def test_sampled_lanes(engine: Engine, requests: list[Request], frequent: list[int]) -> None:
    settings = (Sampling(temperature=0.7, seed=1), Sampling(top_k=20, seed=2), Sampling(top_p=0.8, seed=3), None)
    mixed = [replace(r, sampling=(s := settings[n % 4]) and s.with_request_seed(n)) for n, r in enumerate(requests)]
    for leads in (True, False):
        assert_recorded_equals_launched(engine, wide_jobs(engine, mixed, of=4), frequent[::6], leads=leads, max_rows=19)


def test_logits_that_are_no_numbers_are_told_of(engine: Engine, requests: list[Request]) -> None:
    model = tiny_model("mixtral")
    broken = Engine(model)
    short = [replace(r, prompt_ids=tuple(t % 128 for t in r.prompt_ids), ignore_eos=True) for r in requests]
    job = broken.job(short, BatchPlan.static(12, 4))
    with recording(broken) as steps:
        lanes = broken.run_jobs([job])
        next(lanes)
        model.lm_head.weight.data[:, 0] = torch.nan
        with pytest.raises(NotANumber, match="logits are no numbers"):
            list(lanes)
    assert steps.reason is None


FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {},
    "olmoe": {},
    "granitemoe": {},
    "deepseek_v3": {"n_group": 1, "topk_group": 1},
    "gpt_oss": {},  # windows, sinks
    "dbrx": {},
    "llama4_text": {},  # chunks
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(requests: list[Request], family: str) -> None:
    model = tiny_model(family, **FAMILIES[family])
    model.set_experts_implementation(PER_EXPERT_EXACT)
    engine = Engine(model)
    short = [replace(r, prompt_ids=tuple(t % 128 for t in r.prompt_ids)) for r in requests]
    assert_recorded_equals_launched(engine, wide_jobs(engine, short, of=4), max_rows=37)


def test_the_bundled_model_with_stop_strings() -> None:
    engine = Engine.from_pretrained("lynx_tiny")
    prompts = [item.prompt for task in ("gsm8k", "wmt16") for item in held_out(f"mini_{task}")[:4]]
    asked = [Request(prompt_ids=engine.encode(p), max_new_tokens=24, stop=("\n", " 1")) for p in prompts]
    found = assert_recorded_equals_launched(engine, wide_jobs(engine, asked, of=4), leads=True)
    assert found.exact is True
    reasons = {
        reason for lane in run(engine, wide_jobs(engine, asked, of=1)).values() for reason in lane.finish_reasons
    }
    assert "stop" in reasons


@pytest.mark.parametrize("family", ["granitemoehybrid", "qwen3_next"])
def test_layers_that_keep_states_are_launched_from_python(requests: list[Request], family: str) -> None:
    engine = Engine(tiny_model(family))
    short = [replace(r, prompt_ids=tuple(t % 128 for t in r.prompt_ids)) for r in requests]
    jobs = wide_jobs(engine, short, of=1)
    launched = run(engine, jobs)
    with recording(engine) as steps:
        assert run(engine, jobs) == launched
    told = steps.record()
    assert told is not None and told["ran"] == "eager" and "keep states" in str(told["reason"])


def test_a_cache_without_slots_is_launched_from_python(engine: Engine, requests: list[Request]) -> None:
    padded = Engine(engine.model)
    padded.has_slots = False
    job = padded.job(requests[:4], BatchPlan.static(4, 2))
    with recording(padded) as steps:
        run(padded, [job])
        assert "no slots" in str(steps.record()["reason"])  # type: ignore[index]
        steps.mode = "captured"
        with pytest.raises(ValueError, match="steps=captured: its cache has no slots"):
            run(padded, [job])


def test_settings_that_look_at_a_response_are_the_hosts(engine: Engine, requests: list[Request]) -> None:
    penal = [replace(r, processing=(("repetition_penalty", 1.3),)) for r in requests]
    jobs = wide_jobs(engine, penal, of=2)
    launched = run(engine, jobs)
    with recording(engine) as steps:
        assert run(engine, jobs) == launched
        assert "repetition_penalty: needs each response" in str(steps.record()["reason"])  # type: ignore[index]
        run(engine, wide_jobs(engine, requests, of=1))
        assert steps.record()["ran"] == "captured"  # type: ignore[index]


def test_nothing_to_decode(engine: Engine, requests: list[Request]) -> None:
    once = copies(requests, max_new_tokens=1)
    jobs = [engine.job(once, BatchPlan.static(12, 5)), engine.job(once, BatchPlan.continuous(12, 2), None, "both")]
    assert_recorded_equals_launched(engine, jobs)
    with recording(engine):
        assert run(engine, [engine.job(requests, BatchPlan.static(12, 5), lanes=[])]) == {}


def test_an_abandoned_stream_leaves_no_trace(engine: Engine, requests: list[Request]) -> None:
    with recording(engine):
        lanes: Any = engine.run_jobs(wide_jobs(engine, requests, of=4))
        next(lanes)
        lanes.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in engine.model.modules())
    assert not torch.is_inference_mode_enabled()


def test_a_pack_and_a_cell_alone_have_the_same_steps(engine: Engine, requests: list[Request]) -> None:
    """The number of rows follows from `max_rows`, never from who is there: on a device tokens then do not either."""
    rows = []

    def seen(step: Step) -> Step:
        replay = rerun(step)

        def counted() -> Made:
            made = replay()
            rows.append(made[0].shape[0])
            return made

        return counted

    for of in (1, 4):
        with recording(engine, seen, max_rows=20):
            run(engine, wide_jobs(engine, requests, of=of))
    assert set(rows) == {32}


def test_sizes() -> None:
    assert [width_of(n, 10_000) for n in (1, 128, 129, 192, 193, 256, 257, 4097)] == [
        *(128, 128, 192, 192, 256, 256, 384, 6144)
    ]
    assert width_of(129, 160) == 160
    assert seats_that_fit(256, 16, 1, 10**9) == 256 and seats_that_fit(200, 16, 1, 10**9) == 256
    assert seats_that_fit(256, 16, 1, 100) == 64 and seats_that_fit(4, 5, 1, 10**9) == 8
    assert seats_that_fit(4, 5, 1, 7) == 7
    with pytest.raises(ValueError, match="batch_size=16"):
        seats_that_fit(256, 16, 1, 15)


@pytest.mark.parametrize(("asked", "said"), [("captured", "needs a CUDA device, this is cpu"), ("fast", "must be one")])
def test_bad_calls_are_named(engine: Engine, asked: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"steps={asked}: {said}"):
        Engine(engine.model, steps=asked)


def test_on_a_cpu_nothing_is_recorded(engine: Engine) -> None:
    for asked in ("auto", "eager"):
        steps = Engine(engine.model, steps=asked).steps  # type: ignore[arg-type]
        assert steps.capture is None and steps.record() is None


def test_lanes_of_a_policy_do_not_see_those_beside_them(engine: Engine, requests: list[Request]) -> None:
    jobs = wide_jobs(engine, requests, of=4)
    with recording(engine, max_rows=32):
        together = run(engine, jobs)
        alone = {(n, lane): r for n, job in enumerate(jobs) for (_, lane), r in run(engine, [job]).items()}
    assert together == alone
