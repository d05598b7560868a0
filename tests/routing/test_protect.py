"""Experts that no policy takes from a token: what holds for every policy, a trace worked out by hand, what is found,
and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_exp.routing import Calibrated, ModelShape, Policy, build_policy
from lynx_exp.routing.alignment import policy_digest
from lynx_exp.routing.ops.protect import super_experts
from lynx_exp.routing.ops.weigh import weigh
from lynx_exp.routing.policy import select_in_torch
from lynx_exp.routing.protected import with_experts_named
from lynx_exp.vllm_plugin.plugin_settings import Acting, spec_of
from tests.routing.laws import REPRESENTATIVES, Case, calibration, cases, same
from tests.routing.test_golden import LOGITS, ONLY_FIRST, RULE, STEP, VANILLA_IDS, VANILLA_WEIGHTS, vanilla

IDS = st.lists(st.integers(0, 3), unique=True, max_size=3).map(tuple)


@settings(max_examples=250, deadline=None)
@given(case=cases(), policy=st.sampled_from(REPRESENTATIVES), ids=IDS)
def test_a_protected_expert_that_a_token_routes_to_runs(case: Case, policy: Policy, ids: tuple[int, ...]) -> None:
    if not case.fits(policy):
        return
    plain, kept = case.run(policy), case.run(replace(policy, protect=ids or None))
    assert kept.experts.shape == plain.experts.shape
    for t in range(len(case.step.lane)):
        own, was, now = (part.experts[t].tolist() for part in (case.routing, plain, kept))
        needed = {e for e in own if e in ids}
        if not needed - {*was}:
            assert now == was and torch.equal(kept.weights[t], plain.weights[t]), (
                "rows that lost none are as the policy left them"
            )
            continue
        running = [e for e, w in zip(now, kept.weights[t].tolist(), strict=True) if w > 0]
        assert needed <= {*running} <= {*was} | needed and {*running} == {*now}
        assert len(running) == min(len({*was} | needed), len(now)), "others give way only where there is no slot left"
    choice, dropped = case.routing.choice(case.rule), set()
    for t in range(len(case.step.lane)):
        now = {*kept.experts[t].tolist()}
        dropped = {*plain.experts[t].tolist()} - now
        rest = [e for e in now if not (e in ids and e in case.routing.experts[t].tolist())]
        assert all(choice[t, gone] <= choice[t, e] for gone in dropped for e in rest), "the least wanted give way"


@settings(max_examples=100, deadline=None)
@given(case=cases(), policy=st.sampled_from(REPRESENTATIVES), ids=IDS, weights=st.sampled_from(["original", "mass"]))
def test_weights_are_of_those_that_run_then(case: Case, policy: Policy, ids: tuple[int, ...], weights: str) -> None:
    if not case.fits(policy):
        return
    plain = case.run(replace(policy, protect=ids or None))
    made = case.run(replace(policy, protect=ids or None, weights=weights))
    assert torch.equal(made.experts, plain.experts)
    again = weigh(case.routing, plain, case.rule, weights, None)  # type: ignore[arg-type]
    assert torch.allclose(made.weights, again.weights, rtol=2e-6, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(case=cases(), ids=IDS)
def test_what_changes_nothing_stays_vanilla_bit_for_bit(case: Case, ids: tuple[int, ...]) -> None:
    for name in ("no_drop", "vanilla"):
        assert same(case.run(build_policy(name, protect=[ids] * 4)), case.routing)


@settings(max_examples=60, deadline=None)
@given(case=cases(), policy=st.sampled_from(REPRESENTATIVES), ids=IDS)
def test_loops_and_definition_agree(case: Case, policy: Policy, ids: tuple[int, ...]) -> None:
    if not case.fits(policy):
        return
    policy = replace(policy, protect=ids or None)
    if isinstance(policy, Calibrated):
        policy = policy.calibrated(calibration(case.routing.num_experts, case.routing.top_k))
    policy = policy.bind(case.shape)
    policy = getattr(policy, "policies", (policy,) * 4)[case.step.layer]
    fast = policy(case.routing, replace(case.step, shared={}), case.rule)
    slow = select_in_torch(policy, case.routing, replace(case.step, shared={}), case.rule)
    assert torch.equal(fast.experts, slow.experts)
    assert torch.allclose(fast.weights, slow.weights, rtol=1e-6, atol=0)


GOLDEN = [
    # 0 and 1 alone are kept: token 1 lost 2, token 2 lost 3, token 3 lost 5, whose place 1 has
    ((), [[0, 1], [0, 1], [1, 0], [0, 1]], {1: [0.8699, 0.1301], 2: [0.9241, 0.0759], 3: [0.5744, 0.4256]}),
    ((5,), [[0, 1], [0, 1], [1, 0], [5, 0]], {1: [0.8699, 0.1301], 2: [0.9241, 0.0759]}),
    ((2, 3), [[0, 1], [0, 2], [1, 3], [0, 1]], {3: [0.5744, 0.4256]}),
    ((4,), [[0, 1], [0, 1], [1, 0], [0, 1]], {1: [0.8699, 0.1301], 2: [0.9241, 0.0759], 3: [0.5744, 0.4256]}),
]


@pytest.mark.parametrize(("ids", "experts", "changed"), GOLDEN)
def test_golden(ids: tuple[int, ...], experts: list[list[int]], changed: dict[int, list[float]]) -> None:
    policy = build_policy("lynx_v1_latency", keep_experts=2, protect=[list(ids)])
    out = policy(vanilla(), replace(STEP, shared={}), RULE)
    assert out.experts.tolist() == experts
    for row in range(4):
        assert out.weights[row].tolist() == pytest.approx(changed.get(row, VANILLA_WEIGHTS[row]), abs=1e-4)


def test_an_empty_slot_is_filled_before_any_expert_gives_way() -> None:
    """top_k(1) runs each token's first; the second of tokens 0 and 3 is protected."""
    out = build_policy("top_k", k=1, protect=[[0, 1]])(vanilla(), replace(STEP, shared={}), RULE)
    assert out.experts.tolist() == [[0, 1], [0, 0], [1, 1], [5, 0]]
    assert out.weights[[1, 2]].tolist() == [ONLY_FIRST] * 2
    assert torch.allclose(out.weights[[0, 3]], vanilla().weights[[0, 3]])
    assert vanilla().experts.tolist() == VANILLA_IDS and LOGITS.shape == (4, 6)


def test_which_are_super() -> None:
    """Above the 99.5th percentile and a tenth of the largest: of 1,000 experts at most five."""
    largest = torch.ones(10, 100)
    largest[2, 7], largest[2, 9], largest[4, 1], largest[5, 5] = 100.0, 60.0, 12.0, 9.0
    expected: dict[int, tuple[int, ...]] = {2: (7, 9), 4: (1,)}
    assert super_experts(largest) == [expected.get(layer, ()) for layer in range(10)]
    assert super_experts(torch.tensor([[1.0, 2.0], [3.0, 1.0]])) == [(), (0,)]
    assert super_experts(torch.ones(3, 4)) == [()] * 3


def test_calibrated_ones_are_those_of_the_models_own_file(tmp_path: Path) -> None:
    facts = calibration(8, 2)
    assert facts.largest is not None
    facts.save(tmp_path / "model.st")
    shape = ModelShape(num_experts=8, top_k=2, num_layers=4, calibration=str(tmp_path / "model.st"))
    layer, expert = divmod(int(facts.largest.argmax()), 8)
    for policy in (
        build_policy("xshare", protect="calibrated"),
        build_policy("top_k", k=[1, 2, 1, 1], protect="calibrated"),
    ):
        named = with_experts_named(policy, shape)
        assert [part.protect for part in named.policies] == [  # type: ignore[attr-defined]
            (expert,) if number == layer else None for number in range(4)
        ]
        assert named.name == policy.name and named.label == policy.label
        with pytest.raises(RuntimeError, match="`bind` the policy to a model first"):
            policy(vanilla(), replace(STEP, shared={}), RULE)
    own = build_policy("static_mask", calibration=str(tmp_path / "model.st"), protect="calibrated")
    bound = with_experts_named(own, replace(shape, calibration=None)).bind(shape)
    assert bound.policies[layer].protect == (expert,)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="^lynx: protect=calibrated: calibration=auto: this model has none; run"):
        with_experts_named(build_policy("lynx", protect="calibrated"), replace(shape, calibration=None))
    other = replace(shape, fingerprint=lambda: "f" * 64)
    with pytest.raises(ValueError, match="^lynx: protect=calibrated: calibration=auto: made for another model"):
        with_experts_named(build_policy("lynx", protect="calibrated"), other)
    replace(facts, largest=None).save(tmp_path / "model.st")
    with pytest.raises(
        ValueError, match="^lynx: protect=calibrated: .* made before it held the experts' largest outputs"
    ):
        with_experts_named(build_policy("lynx", protect="calibrated"), shape)


@pytest.mark.parametrize("value", [[3, 4], 3, "all", [[True]], [[-1]], [[1.5]]])
def test_bad_values_are_named(value: object) -> None:
    with pytest.raises(
        ValueError, match=r"^lynx: protect=.*: must be calibrated, null, or a list .* such as \[\[3\],\["
    ):
        build_policy("lynx", protect=value)


def test_experts_and_layers_that_the_model_lacks_are_named() -> None:
    shape = ModelShape(num_experts=8, top_k=2, num_layers=2)
    with pytest.raises(ValueError, match=r"^lynx: protect=\[3, 8\]: must be experts of this model, 0..7$"):
        build_policy("lynx", protect=[[], [8, 3]]).bind(shape)
    with pytest.raises(ValueError, match="parameters for 3 layers; this model has 2"):
        build_policy("lynx", protect=[[1], [], []]).bind(shape)


def test_the_plugin_takes_what_it_is_told_and_an_alignment_is_of_it() -> None:
    for protect in ([[3], [], [5, 7]], "calibrated"):
        acting = Acting.parse({"policy": "lynx", "protect": protect}, "here")
        assert Acting.parse(spec_of(acting.policy, "decode", None), "here") == acting
    digests = {policy_digest(build_policy("lynx", protect=given)) for given in (None, "calibrated", [[3]], [[4]])}
    assert len(digests) == 4 and policy_digest(build_policy("lynx", protect=[[]])) == policy_digest(
        build_policy("lynx")
    )


def test_one_policy_serves_models_of_any_size() -> None:
    """What is kept of `protect` belongs to a number of experts: the same policy met four experts, then nine."""
    policy = replace(build_policy("oea", k0=1), protect=(1,))
    for num_experts in (4, 9):
        assert policy.protected(num_experts, torch.device("cpu")).nonzero().tolist() == [[1]]
        assert len(policy.protected(num_experts, torch.device("cpu"))) == num_experts
