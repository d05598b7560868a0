"""Token by token: KL, confidence and experts against their definitions, one decode step at a time."""

from __future__ import annotations

import pytest
import torch

from lynx_exp import Engine, build_policy
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.sections import Act
from lynx_exp.engine.kv_cache.batch import Batch
from lynx_exp.models import Attachment
from lynx_exp.routing.policy import Policy


@pytest.fixture(scope="module")
def continued(engine: Engine, prompts: list[list[int]]) -> list[Request]:
    """Responses of 1 to 6 tokens, in lanes of 4."""
    run = engine.generate(prompts[:12], batch_size=4, max_new_tokens=6, ignore_eos=True)
    return [
        Request(prompt_ids=tuple(p), continuation_ids=tuple(t[: 1 + i % 6]))
        for i, (p, t) in enumerate(zip(prompts, run.token_ids, strict=False))
    ]


PLAN = BatchPlan.in_order(12, 4)


def rows_of(engine: Engine, continued: list[Request], policy: Policy | None, phases="decode"):
    act = engine.act(policy, phases)
    return {each.request: each for each in engine.fidelity_of(continued, PLAN, [act], tokens=(0,))}


def stepwise(engine: Engine, requests: list[Request], policy: Policy | None):
    """Per decode step: (log-probabilities [R, V], confidence [L, R], experts [L, R, K])."""
    longest = max(len(r.continuation_ids) for r in requests)
    batch = Batch(engine.model, [r.prompt_ids for r in requests], [0] * len(requests), [0], room=longest)
    with torch.inference_mode(), Attachment(engine.routers, policy) as attachment:
        attachment.rows = batch.prefill_rows()
        batch.prefill()
        for t in range(longest - 1):
            attachment.rows = batch.step_rows(torch.tensor([t + 1 < len(r.continuation_ids) for r in requests]))
            attachment.record, attachment.confidence = [], []
            fed = [r.continuation_ids[t] if t < len(r.continuation_ids) else 0 for r in requests]
            logits = batch.step(torch.tensor(fed)).double().log_softmax(-1)
            yield logits, torch.stack(attachment.confidence), torch.stack([e for e, _, _ in attachment.record])


def test_equals_stepwise_decoding(engine: Engine, continued: list[Request]) -> None:
    policy = engine.bind(build_policy("lynx_v1_latency", keep_experts=3))
    found = rows_of(engine, continued, policy)
    for numbers in PLAN.lanes:
        mine = [continued[number] for number in numbers]
        steps = zip(list(stepwise(engine, mine, None)), list(stepwise(engine, mine, policy)), strict=True)
        for t, ((before, confidence, _), (after, _, experts)) in enumerate(steps):
            for row, number in enumerate(numbers):
                if t + 1 >= len(continued[number].continuation_ids):
                    continue
                token = found[number].token_rows
                kl = (before[row].exp() * (before[row] - after[row])).sum()
                assert token.steps[t] == t
                assert float(token.kl_N[t]) == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
                assert torch.allclose(token.confidence_NL[t], confidence[:, row], atol=1e-6)
                assert torch.equal(token.experts_NLW[t], experts[:, row])


def test_tokens_add_up_to_the_response(engine: Engine, continued: list[Request]) -> None:
    """The first token comes from the prompt, which a policy in decode leaves alone."""
    for each in rows_of(engine, continued, build_policy("oea", k0=1)).values():
        if each.tokens == 1:
            assert each.token_rows is None and each.kl == 0
        else:
            assert len(each.token_rows.steps) == each.tokens - 1
            assert float(each.token_rows.kl_N.sum()) == pytest.approx(each.kl)


def test_vanilla_runs_what_its_routers_choose(engine: Engine, continued: list[Request]) -> None:
    vanilla, control = (rows_of(engine, continued, policy) for policy in (None, build_policy("no_drop")))
    for number, each in vanilla.items():
        if each.token_rows is not None:
            assert not each.token_rows.kl_N.any()
            assert torch.equal(each.token_rows.experts_NLW, control[number].token_rows.experts_NLW)
            assert (each.token_rows.experts_NLW >= 0).all()


def test_slots_that_run_nothing_are_marked(engine: Engine, continued: list[Request]) -> None:
    for each in rows_of(engine, continued, build_policy("top_k", k=1)).values():
        if each.token_rows is not None:
            ran = (each.token_rows.experts_NLW >= 0).sum(-1)
            assert (ran == 1).all()


def test_policies_on_prompts_have_the_same_tokens(engine: Engine, continued: list[Request]) -> None:
    """Their pass holds prompts and continuations; vanilla's confidence and steps are as ever."""
    decode, both = (
        rows_of(engine, continued, build_policy("deny_rank", rank=1), phases) for phases in ("decode", "both")
    )
    for number, each in both.items():
        if each.token_rows is not None:
            other = decode[number].token_rows
            assert each.token_rows.steps == other.steps
            assert torch.allclose(each.token_rows.confidence_NL, other.confidence_NL, atol=1e-5)
            assert float(each.token_rows.kl_N.sum()) < each.kl, "the first token has moved, too"


def test_only_who_asks_pays(engine: Engine, continued: list[Request]) -> None:
    acts = [engine.act(build_policy("oea")), Act(policy=None)]
    found = list(engine.fidelity_of(continued, PLAN, acts, tokens=(1,)))
    assert all(each.token_rows is None for each in found if each.act == 0)
    assert any(each.token_rows is not None for each in found if each.act == 1)


def test_confidence_is_the_variance_of_the_probabilities(engine: Engine, continued: list[Request]) -> None:
    (each,) = [e for e in rows_of(engine, continued, None).values() if e.request == 5]
    most = (engine.num_experts - 1) / engine.num_experts**2
    assert ((each.token_rows.confidence_NL > 0) & (each.token_rows.confidence_NL < most)).all()
