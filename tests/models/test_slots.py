"""Slots of every family that has them: rows that come and go decode as each would alone in transformers, and what is
decoded can be scored and timed."""

from __future__ import annotations

from random import Random

import pytest
import torch

from lynx_exp.engine import BatchPlan, Engine, LaneResult, LaneRun, Request
from lynx_exp.engine.decoding.decoder import decodes_in_slots
from lynx_exp.engine.kv_cache.slots import attends_fully
from lynx_exp.engine.timing.window_batch import WindowBatch
from lynx_exp.engine.timing.windows import window_of
from lynx_exp.models import Attachment, count_active
from lynx_exp.models.families import families
from lynx_exp.models.slotless import why_no_slots
from lynx_exp.models.tiny import tiny_config
from lynx_exp.routing import build_policy
from tests.engine.test_lane_states import stopped_and_gone_on
from tests.models.verdicts import verdict

LENGTHS = (3, 20, 7, 14, 1, 11)
"""Of prompts; windows and chunks of tiny models are of 8."""
FAMILIES = families()
LYNX = build_policy("lynx", alpha=1.0, beta=2)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def engine_of(family, *, plain: bool = True) -> Engine | None:
    """None for families that are refused or have no slots; without `plain`, for those with full attention alone, which
    the engine's own tests are about."""
    found = verdict(family)
    if not found.routers or why_no_slots(tiny_config(family.model_types[0]).to_dict()) is not None:
        return None
    if not plain and attends_fully(found.model.config.get_text_config()):
        return None
    return Engine(found.model)


def requests(new_tokens: int = 7) -> list[Request]:
    draw = Random(4)
    return [
        Request(
            prompt_ids=tuple(draw.randrange(3, 120) for _ in range(length)),
            max_new_tokens=2 + number * 3 % new_tokens,
            ignore_eos=True,
        )
        for number, length in enumerate(LENGTHS)
    ]


@every_family
def test_a_configuration_tells_whether_there_are_slots(family):
    found = verdict(family)
    for model_type in family.model_types if found.routers else ():
        said = why_no_slots(tiny_config(model_type).to_dict()) is None
        assert Engine(found.model).has_slots == said, model_type


@every_family
def test_slots_decode_as_transformers_does(family):
    engine = engine_of(family)
    if engine is None:
        return
    assert decodes_in_slots(engine.model)
    asked = requests()
    for lane in engine.run_lanes(asked, BatchPlan.continuous(len(asked), 2, seed=1)):
        for number, tokens in zip(lane.requests, lane.token_ids, strict=True):
            ids = torch.tensor([asked[number].prompt_ids])
            plain = engine.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(tokens), do_sample=False, eos_token_id=-1
            )
            assert tokens == plain[0, ids.shape[1] :].tolist()


@every_family
def test_a_lane_in_slots_is_what_it_is_alone(family):
    """Beside lanes of another policy and batch size, under policies that act in decode alone and on prompts too."""
    engine = engine_of(family, plain=False)
    if engine is None:
        return
    asked = requests()
    wide, narrow = BatchPlan.continuous(len(asked), 3, seed=1), BatchPlan.continuous(len(asked), 2, seed=2)
    jobs = [
        engine.job(asked, wide, LYNX),
        engine.job(asked, narrow),
        engine.job(asked, wide, LYNX, "both"),
    ]
    packed = list(engine.run_jobs(jobs))
    for number, job in enumerate(jobs):
        alone = [lane for _, lane in engine.run_jobs([job])]
        together = [lane for at, lane in packed if at == number]
        assert sorted(map(said, together)) == sorted(map(said, alone))


def said(lane: LaneResult) -> tuple[object, ...]:
    return lane.lane, lane.requests, lane.token_ids, lane.live_rows, lane.active_experts, lane.changed


@every_family
def test_a_lane_that_was_stopped_goes_on(family):
    """With its windows, chunks and states."""
    engine = engine_of(family, plain=False)
    if engine is None:
        return
    asked = requests()
    jobs = [
        engine.job(asked, BatchPlan.continuous(len(asked), 3, seed=1), LYNX),
        engine.job(asked, BatchPlan.continuous(len(asked), 2, seed=2), LYNX, "both"),
    ]
    whole = {(number, lane.lane): lane for number, lane in engine.run_jobs(jobs)}
    found, gone_on = stopped_and_gone_on(engine, jobs, [3, 2], 1, (64, 5))
    assert {key: said(lane) for key, lane in found.items()} == {key: said(lane) for key, lane in whole.items()}
    assert gone_on > 0


@every_family
def test_windows_do_again_what_the_run_did(family):
    """Rows enter and leave within the window; states are set back to its beginning each time."""
    engine = engine_of(family, plain=False)
    if engine is None:
        return
    asked = requests()
    (result,) = engine.run_lanes(asked, BatchPlan.continuous(len(asked), 3, seed=2, waves=2))
    run = LaneRun(
        subtask="t",
        lane=0,
        prompts=[asked[number].prompt_ids for number in result.requests],
        tokens=result.token_ids,
        slots=result.slots,
        entered=result.entered,
    )
    batch = WindowBatch(engine.model, engine._make_decoder(), 3, 64, 2**30)
    every = [window_of(run, start, 3) for start in range(run.num_steps - 2)]
    calm = max((window.cut() for window in every), key=lambda window: len(window.steps))
    assert len(calm.steps) > 1
    for window in (window_of(run, 0, run.num_steps), every[2], calm):
        batch.enter(window)
        first, second = (feed(engine, batch) for _ in range(2))
        expected = result.active_experts[window.start : window.start + len(window.steps)]
        assert [active for active, _ in first] == expected
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(first, second, strict=True))


def feed(engine: Engine, batch: WindowBatch) -> list[tuple[list[int], torch.Tensor]]:
    """(active experts of each layer, logits) of each step of the batch's window."""
    steps = []
    for number in range(len(batch.window.steps)):
        rows = batch.seat(number)
        with Attachment(engine.routers, None) as attachment, torch.inference_mode():
            attachment.rows, attachment.record = rows, []
            logits = batch.step(number)
        active = count_active(attachment.record, rows.lane, rows.live, 1, engine.num_experts)
        steps.append((active[0].tolist(), logits))
    return steps


@every_family
def test_steps_are_done_again_from_where_they_began(family):
    engine = engine_of(family, plain=False)
    if engine is None:
        return
    batch = engine._lane_alone([request.prompt_ids for request in requests()[:3]], room=3)
    with torch.inference_mode():
        first = batch.prefill().argmax(-1)
        once = [batch.step(first), batch.step(first)]
        batch.rewind()
        again = [batch.step(first), batch.step(first)]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(*once)
