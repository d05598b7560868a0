"""A policy in a worker: what each row runs, against the policy called on the acting rows alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lynx_exp.routing import RouterRule, Routing, StepContext, build_policy
from tests.vllm.conftest import bring_up
from tests.vllm.fake_vllm import (
    EXPERTS,
    LAYERS,
    TOP_K,
    MoERunnerInterface,
    Params,
    Router,
    chosen_by_the_router,
    logits_of,
)

POLICIES = {
    "lynx": {"alpha": 1.0, "beta": 1},
    "lynx_v1_latency": {"keep_experts": 3},
    "oea": {"k0": 1, "k_max": 4},
    "top_k": {"k": 1},
    "random_keep": {"keep_experts": 4},
    "no_drop": {},
}


def fill(engine, prompts, max_tokens=6):
    for name, prompt in prompts.items():
        engine.add_request(name, {"prompt_token_ids": prompt}, Params(max_tokens=max_tokens))


def alone(policy, rows, engine, step, key):
    """(experts, weights) of each acting row: the policy on those rows and no others."""
    made = []
    for layer in range(LAYERS):
        logits = torch.stack([logits_of(engine.prompts[name], position, layer) for name, position in rows])
        weights, experts = (part.flip(-1) for part in chosen_by_the_router(logits))
        count = len(rows)
        context = StepContext(
            layer=layer,
            decode=torch.ones(count, dtype=torch.bool),
            lane=torch.zeros(count, dtype=torch.long),
            live=torch.ones(count, dtype=torch.bool),
            num_lanes=1,
            key=torch.tensor([key]),
            row=torch.tensor([engine.seats[name] << 32 for name, _ in rows]),
        )
        made.append(policy(Routing(logits=logits, experts=experts.long(), weights=weights), context, RouterRule()))
    return made


def as_sets(experts, weights):
    return [
        sorted((int(e), round(float(w), 5)) for e, w in zip(*row, strict=True) if w != 0)
        for row in zip(experts.tolist(), weights.tolist(), strict=True)
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    budget=st.integers(3, 20),
    pad=st.sampled_from([1, 8]),
    second=st.booleans(),
    name=st.sampled_from(list(POLICIES)),
    preempt=st.sets(st.integers(2, 12), max_size=2),
)
def test_decode_rows_run_what_the_policy_says_of_them_alone(fake, lengths, budget, pad, second, name, preempt):
    engine: Any = bring_up({"policy": name, **POLICIES[name]}, budget=budget, pad=pad, second=second)
    engine.preempt_at = preempt
    prompts = {f"r{n}": tuple(range(3 + n, 3 + n + length)) for n, length in enumerate(lengths)}
    engine.prompts = dict(prompts)
    order = list(prompts)
    engine.seats = {each: order.index(each) for each in order}
    fill(engine, prompts)
    policy, seen, decode_step, mixed = build_policy(name, **POLICIES[name]), set(), 0, 0
    while engine.has_unfinished_requests():
        engine.step()
        if not engine.runner.ran:
            continue
        rows, made = engine.runner.ran.pop()
        acting = [
            at
            for at, (who, position) in enumerate(rows)
            if position >= len(prompts[who]) and (who, position) not in seen
        ]
        seen |= set(rows)
        mixed += 0 < len(acting) < len(rows)
        expected = alone(policy, [rows[at] for at in acting], engine, 0, decode_step) if acting else []
        decode_step += bool(acting)
        for layer, (weights, experts) in enumerate(made):
            assert len(weights) % pad == 0 and experts.dtype == torch.int32
            own = torch.stack([logits_of(prompts[who], position, layer) for who, position in rows])
            stock_weights, stock = chosen_by_the_router(own)
            others = [at for at in range(len(rows)) if at not in acting]
            assert torch.equal(experts[others, :TOP_K], stock[others]), "prefill rows are the router's own"
            assert torch.equal(weights[others, :TOP_K], stock_weights[others])
            if acting:
                wanted = as_sets(expected[layer].experts, expected[layer].weights)
                assert as_sets(experts[acting], weights[acting]) == wanted
            awake = {e for row in as_sets(experts[: len(rows)], weights[: len(rows)]) for e, _ in row}
            assert set(experts[len(rows) :].flatten().tolist()) <= awake, "padding wakes no expert"
            assert not weights[len(rows) :].any()
    summary = engine.worker.lynx_record()
    assert summary["decode_rows"] == sum(position >= len(prompts[who]) for who, position in seen)
    assert summary["mixed_steps"] == mixed


@pytest.mark.parametrize("name", ["vanilla", "no_drop"])
@pytest.mark.parametrize("second", [False, True])
def test_vanilla_and_no_drop_are_the_stock_routing_bit_for_bit(start, name, second):
    prompts = {f"r{n}": tuple(range(n, n + 5)) for n in range(4)}
    engine, stock = start({"policy": name}, second=second), start(None, second=second)
    for each in (engine, stock):
        fill(each, prompts)
        while each.has_unfinished_requests():
            each.step()
    for (_, own), (_, other) in zip(engine.runner.ran, stock.runner.ran, strict=True):
        for (weights, experts), (stock_weights, stock_experts) in zip(own, other, strict=True):
            assert torch.equal(weights, stock_weights) and torch.equal(experts, stock_experts)


def test_without_the_setting_nothing_is_changed(start):
    engine = start(None)
    assert not hasattr(engine.worker, "lynx")
    assert {name for name in vars(engine.runner) if callable(getattr(engine.runner, name))} == {"model"}
    assert all("_compute_routing" not in vars(block.experts.router) for block in engine.runner.model)


def test_registering_twice_wraps_once(fake):
    import sys

    from lynx_exp.vllm_plugin import register

    register()
    before = sys.modules["vllm.engine.arg_utils"].EngineArgs.create_engine_config
    register()
    assert sys.modules["vllm.engine.arg_utils"].EngineArgs.create_engine_config is before


def test_counts_before_and_after(start, tmp_path):
    report = tmp_path / "report.json"
    engine = start({"policy": "lynx_v1_latency", "keep_experts": 2, "report": str(report)})
    fill(engine, {f"r{n}": (n, n + 1) for n in range(5)}, max_tokens=4)
    while engine.has_unfinished_requests():
        engine.step()
    found = engine.worker.lynx_record()
    sizes = []
    for rows, _ in engine.runner.ran[1:]:
        for layer in range(LAYERS):
            logits = torch.stack([logits_of((int(who[1:]), int(who[1:]) + 1), at, layer) for who, at in rows])
            sizes.append(len(chosen_by_the_router(logits)[1].unique()))
    assert found["decode_steps"] == 3 and found["decode_rows"] == 15 and found["prefill_rows"] == 10
    assert sum(found["experts_before"]) / LAYERS == pytest.approx(sum(sizes) / len(sizes))
    assert found["experts_after"] == [2.0] * LAYERS
    assert found["by_rows"]["5"]["steps"] == 3
    engine.worker.shutdown()
    assert json.loads(report.read_text())["experts_after"] == [2.0] * LAYERS


def test_layers_where_the_policy_does_not_act(start):
    engine = start({"policy": "lynx_v1_latency", "keep_experts": 2, "layers": "1:"})
    fill(engine, {f"r{n}": (n, n + 1) for n in range(5)})
    while engine.has_unfinished_requests():
        engine.step()
    found = engine.worker.lynx_record()
    assert found["experts_after"][0] == found["experts_before"][0] > 2 == found["experts_after"][1]


def test_a_policy_that_never_acted_is_said_aloud(start, capsys):
    engine = start({"policy": "lynx"})
    fill(engine, {"a": (1, 2, 3)}, max_tokens=1)
    engine.step()
    engine.worker.shutdown()
    engine.worker.shutdown()
    said = capsys.readouterr().err
    assert said.count("WARNING: lynx(alpha=3, beta=2") == 1 and "never acted: no decode row in 1 forward passes" in said


def test_warm_up_runs_the_policy_over_nobody(start):
    engine = start({"policy": "lynx_v1_latency", "keep_experts": 3}, pad=8)
    made = engine.runner._dummy_run(5)
    assert [tuple(experts.shape) for _, experts in made] == [(8, TOP_K)] * LAYERS
    assert all(len(experts.unique()) <= TOP_K and not weights.any() for weights, experts in made)
    assert engine.worker.lynx_record()["forward_passes"] == 0


def test_requests_that_only_warm_up_are_not_counted(start):
    engine = start({"policy": "lynx"}, second=True)
    fill(engine, {"_warmup_0_": (1, 2), "_v2_mixed_warmup_decode_": (3,)}, max_tokens=3)
    while engine.has_unfinished_requests():
        engine.step()
    assert engine.worker.lynx_record()["forward_passes"] == 0
    fill(engine, {"a": (1, 2)}, max_tokens=3)
    while engine.has_unfinished_requests():
        engine.step()
    assert engine.worker.lynx_record()["decode_rows"] == 2


class ByRule(Router):
    """Routes as a rule says, with the attributes that vLLM's routers have."""

    def __init__(self, rule, dtype=torch.float32):
        super().__init__()
        self.own, self.dtype = rule, dtype
        self.num_expert_group, self.topk_group = rule.groups, rule.top_groups
        self.e_score_correction_bias, self.routed_scaling_factor = rule.bias, rule.scaling

    def _compute_routing(self, hidden_states, router_logits, indices_type, *, input_ids=None):
        logits = router_logits.float()
        scores = self.own.scores(logits)
        experts = self.own.choice(logits, scores).topk(self.top_k, -1).indices.flip(-1)
        weights = scores.gather(-1, experts)
        if self.own.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * self.own.scaling, experts.int()


BIAS = torch.linspace(-0.3, 0.4, EXPERTS)
RULES = [
    RouterRule(),
    RouterRule(renormalize=False),
    RouterRule(score="sigmoid", renormalize=False),
    RouterRule(score="sigmoid", bias=BIAS, scaling=2.5),
    RouterRule(groups=4, top_groups=1),
    RouterRule(score="sigmoid", bias=BIAS, scaling=2.5, groups=2, top_groups=1, group_score="top2"),
    RouterRule(score="sqrtsoftplus", bias=BIAS),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.score} {rule.groups} {rule.bias is not None}")
@pytest.mark.parametrize("name", ["no_drop", "lynx", "oea"])
def test_routers_are_served_by_their_own_rule(start, rule, name):
    prompts = {f"r{n}": (n, n + 3) for n in range(6)}
    engine = start({"policy": name}, router=lambda: ByRule(rule))
    found = engine.worker.lynx._layers[0].rule
    for field in ("score", "renormalize", "groups", "top_groups"):
        assert getattr(found, field) == getattr(rule, field), field
    assert found.scaling == rule.scaling and (found.bias is None) == (rule.bias is None)
    fill(engine, prompts, max_tokens=3)
    while engine.has_unfinished_requests():
        engine.step()
    policy = build_policy(name)
    for rows, made in engine.runner.ran[1:]:
        for layer, (weights, experts) in enumerate(made):
            logits = torch.stack([logits_of(prompts[who], at, layer) for who, at in rows])
            stock_weights, stock = ByRule(rule)._compute_routing(None, logits, None)
            count = len(rows)
            step = StepContext(
                layer=layer,
                decode=torch.ones(count, dtype=torch.bool),
                lane=torch.zeros(count, dtype=torch.long),
                live=torch.ones(count, dtype=torch.bool),
                num_lanes=1,
                key=torch.zeros(1, dtype=torch.long),
                row=torch.arange(count),
            )
            given = Routing(logits=logits, experts=stock.long().flip(-1), weights=stock_weights.flip(-1))
            wanted = policy(given, step, rule)
            assert as_sets(experts, weights) == as_sets(wanted.experts, wanted.weights)
            if name == "no_drop":
                assert torch.equal(experts, stock) and torch.equal(weights, stock_weights)


# Fail closed.


class Monolithic(MoERunnerInterface):
    def __init__(self, router):
        super().__init__(router)
        self.is_monolithic = True


class Hashed(Router):
    def _compute_routing(self, hidden_states, router_logits, indices_type, *, input_ids=None):
        assert input_ids is not None, "needs the tokens"


class Odd(Router):
    def _compute_routing(self, hidden_states, router_logits, indices_type, *, input_ids=None):
        weights, experts = chosen_by_the_router(router_logits.float())
        return weights, (experts + 1) % EXPERTS


class Fewer(Router):
    def _compute_routing(self, hidden_states, router_logits, indices_type):
        return chosen_by_the_router(router_logits)


class WithShared(Router):
    def _compute_routing(self, hidden_states, router_logits, indices_type, *, input_ids=None):
        weights, experts = chosen_by_the_router(router_logits.float())
        return weights.repeat(1, 2), experts.repeat(1, 2)


@pytest.mark.parametrize(
    ("router", "says"),
    [
        (Hashed, "cannot be asked about random logits: needs the tokens"),
        (Odd, "by none of the known rules"),
        (Fewer, "Fewer is not a router that this plugin knows"),
        (WithShared, "gives a token 4 experts, not 2"),
    ],
)
def test_a_router_that_is_not_understood_is_refused(start, router, says):
    with pytest.raises(ValueError, match=says):
        start({"policy": "lynx"}, router=router)


def test_a_kernel_that_routes_by_itself_is_refused(start, monkeypatch):
    monkeypatch.setattr("tests.vllm.fake_vllm.MoERunnerInterface", Monolithic)
    with pytest.raises(ValueError, match="routes inside its kernel, where no policy reaches"):
        start({"policy": "lynx"})


def test_a_model_without_experts_is_refused(start, monkeypatch):
    monkeypatch.setattr("tests.vllm.fake_vllm.Block", lambda router: torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no layer of routed experts"):
        start({"policy": "lynx"})


@pytest.mark.parametrize(("eager", "device"), [(True, "cpu"), (False, "cpu"), (True, "cuda")])
def test_more_experts_than_vllm_has_slots_for(start, eager, device):
    engine = start({"lanes": True})
    engine.vllm_config.model_config.enforce_eager = eager
    asked = {"policy": "oea", "k0": 1, "k_max": TOP_K + 2}
    engine.worker.lynx_bind(asked | {"k_max": TOP_K})
    if device == "cpu" and eager:
        engine.worker.lynx_bind(asked)
        return
    if device != "cpu":
        engine.runner.device = Elsewhere()
    says = "compiles for" if device == "cpu" else "sized for"
    with pytest.raises(ValueError, match=rf"oea.*up to {TOP_K + 2} experts.*{says} {TOP_K}"):
        engine.worker.lynx_bind(asked)


class Elsewhere(str):
    """A device that is no CPU, for who looks at its type; tensors are made on the CPU."""

    type = "cuda"

    def __new__(cls) -> Elsewhere:
        return super().__new__(cls, "cpu")


def test_a_runner_that_is_not_known_is_refused(start, monkeypatch):
    monkeypatch.setattr("tests.vllm.fake_vllm.Runner._prepare_inputs", lambda self, scheduler_output: None)
    with pytest.raises(ValueError, match="Runner is not a model runner that this plugin knows"):
        start({"policy": "lynx"})


def test_a_layer_that_does_not_ask_ends_the_run(start):
    engine = start({"policy": "lynx"})
    fill(engine, {"a": (1, 2)})
    engine.runner.skip_layer = 1
    with pytest.raises(RuntimeError, match="1 of 2 layers asked what to run"):
        engine.step()


def test_rows_of_other_ranks_end_the_run(start):
    engine = start({"policy": "lynx"})
    fill(engine, {"a": (1, 2)})
    engine.runner.gathered = 3
    with pytest.raises(RuntimeError, match="5 rows are routed, the step has 2"):
        engine.step()


def test_rows_that_nobody_announced_end_the_run(start, monkeypatch):
    engine = start({"policy": "lynx"})
    fill(engine, {"a": (1, 2)})
    monkeypatch.setattr(engine.runner, "_ready", lambda *_: None)
    with pytest.raises(RuntimeError, match="rows are routed, 0 were announced|nobody announced"):
        for _ in range(2):
            engine.step()
