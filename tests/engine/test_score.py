"""Teacher-forced decode equals stepwise decode of the same tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.kv_cache.batch import Batch
from lynx_exp.models import Attachment
from lynx_exp.routing import Policy
from tests.engine.conftest import CONFIG, shape_of
from tests.routing.laws import REPRESENTATIVES, bound


@torch.inference_mode()
def stepwise(engine: Engine, requests: list[Request], lane: tuple[int, ...], number: int, policy: Policy, phases: str):
    """Summed log-probabilities of one lane, one decode step at a time."""
    mine = [requests[r] for r in lane]
    longest = max(len(r.continuation_ids) for r in mine)
    batch = Batch(engine.model, [r.prompt_ids for r in mine], [0] * len(mine), [number], room=longest)
    totals = [0.0] * len(mine)
    with Attachment(engine.routers, policy, phases) as attachment:
        attachment.rows = batch.prefill_rows()
        logits = batch.prefill()
        for t in range(longest):
            logprobs = logits.log_softmax(-1)
            for row, request in enumerate(mine):
                if t < len(request.continuation_ids):
                    totals[row] += logprobs[row, request.continuation_ids[t]].item()
            fed = [r.continuation_ids[t] if t < len(r.continuation_ids) else 0 for r in mine]
            attachment.rows = batch.step_rows(torch.tensor([t + 1 < len(r.continuation_ids) for r in mine]))
            logits = batch.step(torch.tensor(fed))
    return totals


@pytest.fixture(scope="module")
def requests(prompts: list[list[int]]) -> list[Request]:
    """Continuations of 1 to 8 tokens."""
    return [
        Request(prompt_ids=tuple(p), continuation_ids=tuple(prompts[(i + 7) % 32][: 1 + i % 8]))
        for i, p in enumerate(prompts[:24])
    ]


@pytest.mark.parametrize("phases", ["decode", "prefill", "both"])
@pytest.mark.parametrize("policy", REPRESENTATIVES, ids=lambda policy: policy.label)
def test_teacher_forced_equals_stepwise(engine: Engine, requests: list, policy: Policy, phases: str) -> None:
    plan = BatchPlan.static(24, 5, seed=3)
    policy = bound(policy, shape_of(engine))
    for result in engine.score_lanes(requests, plan, policy, phases):
        expected = stepwise(engine, requests, plan.lanes[result.lane], result.lane, policy, phases)
        assert result.logprobs == pytest.approx(expected, abs=1e-4)


def test_the_policy_matters(engine: Engine, requests: list[Request]) -> None:
    plan = BatchPlan.static(24, 8)

    def scores(policy: Policy | None) -> list[float]:
        return [x for lane in engine.score_lanes(requests, plan, policy) for x in lane.logprobs]

    vanilla, pruned = scores(None), scores(build_policy("lynx_v1_latency", keep_experts=2))
    assert sum(abs(a - b) > 1e-2 for a, b in zip(vanilla, pruned, strict=True)) > 12


def test_greedy_continuations_are_called_greedy(engine: Engine, prompts: list[list[int]]) -> None:
    run = engine.generate(prompts[:6], batch_size=3, max_new_tokens=5)
    right = [
        Request(prompt_ids=tuple(p), continuation_ids=tuple(t)) for p, t in zip(prompts, run.token_ids, strict=False)
    ]
    plan = BatchPlan(((0, 1, 2), (3, 4, 5)))
    assert all(all(lane.greedy) for lane in engine.score_lanes(right, plan))
    wrong = [
        Request(prompt_ids=r.prompt_ids, continuation_ids=(*r.continuation_ids[:-1], r.continuation_ids[-1] ^ 1))
        for r in right
    ]
    assert not any(any(lane.greedy) for lane in engine.score_lanes(wrong, plan))


def test_scoring_counts_the_experts_that_decoding_would_have_run(engine: Engine, prompts: list[list[int]]) -> None:
    policy = build_policy("lynx_v1_latency", keep_experts=3)
    run = engine.generate(prompts[:8], batch_size=4, policy=policy, max_new_tokens=6)
    requests = [
        Request(prompt_ids=tuple(p), continuation_ids=tuple(t)) for p, t in zip(prompts, run.token_ids, strict=False)
    ]
    scored = engine.score_lanes(requests, BatchPlan(((0, 1, 2, 3), (4, 5, 6, 7))), policy)
    for lane, decoded in zip(scored, run.lanes, strict=True):
        assert lane.live_rows == decoded.live_rows
        assert lane.active_experts == decoded.active_experts


def test_an_empty_continuation_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="continuation_ids"):
        list(engine.score_lanes([Request(prompt_ids=(5,))], BatchPlan(((0,),))))


def test_a_choice_of_one_token_more_than_the_context_is_scored():
    engine = Engine.from_config("mixtral", CONFIG | {"max_position_embeddings": 12}, seed=0)
    fits = Request(prompt_ids=tuple(range(3, 8)), continuation_ids=tuple(range(5, 13)))
    fed = torch.tensor([[*fits.prompt_ids, *fits.continuation_ids[:-1]]])
    with torch.inference_mode():
        whole = engine.model(fed).logits[0, 4:].log_softmax(-1)
    wanted = whole.gather(-1, torch.tensor(fits.continuation_ids)[:, None]).sum().item()
    for scoring in ("decode", "prefill"):
        (lane,) = engine.score_lanes([fits], BatchPlan.in_order(1, 1), scoring=scoring)
        assert lane.logprobs == [pytest.approx(wanted, abs=1e-4)]
    too_long = replace(fits, prompt_ids=tuple(range(3, 9)))
    with pytest.raises(ValueError, match="request 0: prompt and response need 13 positions; the model has 12"):
        list(engine.score_lanes([too_long], BatchPlan.in_order(1, 1)))
