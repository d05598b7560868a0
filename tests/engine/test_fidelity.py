"""KL divergence and agreement against vanilla: closed form, direction, and that the same batch plan is used."""

from __future__ import annotations

import pytest
import torch

from lynx_exp import Engine
from lynx_exp.engine import BatchPlan, Request
from lynx_exp.engine.decoding.score import rows_of_a_pass
from lynx_exp.engine.kv_cache.batch import Batch
from lynx_exp.models import Attachment
from lynx_exp.routing import build_policy


@pytest.fixture(scope="module")
def continued(engine: Engine, prompts: list[list[int]]) -> list[Request]:
    run = engine.generate(prompts[:12], batch_size=4, max_new_tokens=6, ignore_eos=True)
    return [
        Request(prompt_ids=tuple(p), continuation_ids=tuple(t[: 2 + i % 5]))
        for i, (p, t) in enumerate(zip(prompts, run.token_ids, strict=False))
    ]


def stepwise(engine: Engine, requests: list[Request], numbers: tuple[int, ...], policy) -> torch.Tensor:
    """`[R, T, V]` log-probabilities, decoding the given tokens one step at a time."""
    mine = [requests[n] for n in numbers]
    longest = max(len(r.continuation_ids) for r in mine)
    batch = Batch(engine.model, [r.prompt_ids for r in mine], [0] * len(mine), [0], room=longest)
    found = []
    with torch.inference_mode(), Attachment(engine.routers, policy) as attachment:
        attachment.rows = batch.prefill_rows()
        found.append(batch.prefill())
        for t in range(longest - 1):
            attachment.rows = batch.step_rows(torch.tensor([t + 1 < len(r.continuation_ids) for r in mine]))
            fed = [r.continuation_ids[t] if t < len(r.continuation_ids) else 0 for r in mine]
            found.append(batch.step(torch.tensor(fed)))
    return torch.stack(found, 1).double().log_softmax(-1)


def test_equals_the_definition_on_stepwise_decoding(engine: Engine, continued: list[Request]) -> None:
    policy = build_policy("lynx_v1_latency", keep_experts=3)
    plan = BatchPlan.in_order(12, 4)
    found = {each.request: each for each in engine.fidelity(continued, plan, policy)}
    assert sorted(found) == list(range(12))
    for lane, numbers in enumerate(plan.lanes):
        before = stepwise(engine, continued, numbers, None)
        after = stepwise(engine, continued, numbers, policy)
        for row, number in enumerate(numbers):
            tokens = len(continued[number].continuation_ids)
            kl = (before[row].exp() * (before[row] - after[row])).sum(-1)[:tokens].sum()
            same = (before[row].argmax(-1) == after[row].argmax(-1))[:tokens].sum()
            each = found[number]
            assert (each.lane, each.tokens, each.agreeing) == (lane, tokens, same)
            assert each.kl == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
    assert sum(each.kl for each in found.values()) > 1e-4


@pytest.mark.parametrize("phases", ["decode", "prefill", "both"])
def test_retained_mass_is_that_of_the_experts_that_run(engine: Engine, continued: list[Request], phases: str) -> None:
    """The first of K experts holds at least 1/K of their mass, and less than all of it."""
    policy, plan = build_policy("keep_ranks", ranks=1), BatchPlan.in_order(12, 4)
    found = list(engine.fidelity(continued, plan, policy, phases=phases))
    for each in found:
        fed = each.tokens - 1
        prompt = len(continued[each.request].prompt_ids) if phases != "decode" else 0
        assert each.prompt_tokens == prompt
        if phases == "prefill":
            assert each.retained == pytest.approx(fed)
        else:
            assert fed / engine.top_k <= each.retained < fed
        if prompt:
            assert prompt / engine.top_k <= each.prompt_retained < prompt
        else:
            assert each.prompt_retained == 0.0


def test_vanilla_and_no_drop_differ_from_vanilla_by_nothing(engine: Engine, continued: list[Request]) -> None:
    plan = BatchPlan.in_order(12, 4)
    for policy in (None, build_policy("no_drop")):
        for each in engine.fidelity(continued, plan, policy):
            assert each.kl == 0.0 and each.agreeing == each.tokens
            assert each.retained == pytest.approx(each.tokens - 1) and each.prompt_retained == 0.0


def test_lanes_do_not_depend_on_their_packing(
    engine: Engine, continued: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = BatchPlan.in_order(12, 4)
    policy = build_policy("oea")
    packed = list(engine.fidelity(continued, plan, policy))
    monkeypatch.setattr("lynx_exp.engine.decoding.score.LOGITS_BYTES", 8000)  # a vocabulary too large for two lanes
    assert rows_of_a_pass(continued, engine.model) == 1
    for a, b in zip(packed, engine.fidelity(continued, plan, policy), strict=True):
        assert (a.request, a.agreeing) == (b.request, b.agreeing)
        assert a.kl == pytest.approx(b.kl, abs=1e-5)


def test_a_policy_in_no_layer_but_the_last_changes_less(engine: Engine, continued: list[Request]) -> None:
    plan, policy = BatchPlan.in_order(12, 4), build_policy("lynx_v1_latency", keep_experts=2)

    def total(layers: str | None) -> float:
        return sum(each.kl for each in engine.fidelity(continued, plan, policy, layers=layers))

    assert 0 < total("-1") < total("1:") < total(None)
    with pytest.raises(ValueError, match="layers=7: 7: this model has layers 0..2"):
        total("7")
