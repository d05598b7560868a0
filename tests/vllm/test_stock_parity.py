"""Inside stock vLLM: the plugin against vLLM itself, the transformers backend, and a second way in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lynx_exp.routing import build_policy
from tests.vllm.stock import (
    MARKS,
    POLICIES,
    PROMPTS,
    QUARTER,
    Spy,
    as_sets,
    say,
    started,
    worker_of,
)

pytestmark = MARKS


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Mixtral, with the bundled model's tokenizer and logits far enough apart to survive bf16."""
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

    from lynx_exp.models import locate

    folder = tmp_path_factory.mktemp("mixtral")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=10240,  # `vllm bench latency` draws tokens below 10000
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        sliding_window=None,
        initializer_range=0.2,
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate("lynx_tiny")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def stock() -> list[list[int]]:
    with started(None) as llm:
        assert not hasattr(worker_of(llm), "lynx")
        return say(llm)


@pytest.mark.parametrize("name", ["vanilla", "no_drop"])
def test_the_plugin_leaves_stock_tokens(name, stock):
    with started({"policy": name}) as llm:
        assert say(llm) == stock


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_mixtral_too(mixtral, dtype):
    with started(None, mixtral, dtype=dtype) as llm:
        plain = say(llm)
    with started({"policy": "no_drop"}, mixtral, dtype=dtype) as llm:
        assert say(llm) == plain


def test_chunked_prefill_with_requests_that_come_at_all_times(capsys):
    with started(QUARTER, max_num_batched_tokens=24) as llm:
        spy = Spy(worker_of(llm).lynx)
        say(llm)
        found = llm.collective_rpc("lynx_record")[0]
    mixed, pruned, before = 0, [], []
    for _, _, weights, experts, new_weights, new_experts, (decode, _) in spy.seen:
        assert torch.equal(experts[~decode], new_experts[~decode]), "prefill rows run what the router chose"
        assert torch.equal(weights[~decode], new_weights[~decode])
        if decode.any() and (~decode).any():
            mixed += 1
            before.append(len(experts[decode].unique()))
            pruned.append(len(new_experts[decode].unique()))
    assert found["mixed_steps"] * 4 == mixed > 0 and max(pruned) <= 4 < max(before)
    with capsys.disabled():
        print(
            f"\nchunked prefill: {found['mixed_steps']} mixed and {found['decode_steps']} decode steps; decode rows of "
            f"mixed steps ran {sum(before) / len(before):.2f} -> {sum(pruned) / len(pruned):.2f} experts a layer; "
            "prefill rows unchanged"
        )


def test_every_policy_routes_as_in_the_transformers_backend_on_the_same_logits(capsys):
    """In one engine, one lane a policy: the rows of each lane, and the policy as that backend binds it."""
    from lynx_exp import Engine
    from lynx_exp.engine import BatchPlan, Request
    from lynx_exp.routing import Routing, StepContext
    from lynx_exp.vllm_backend import VllmEngine, open_llm

    other = Engine.from_pretrained("lynx_tiny", dtype="float32", device="cpu")
    engine = VllmEngine(open_llm("lynx_tiny", dtype="float32", device="cpu", max_rows=256, memory_gib=0.5))
    spy = Spy(worker_of(engine.llm).lynx)
    requests = [
        Request(prompt_ids=tuple(engine.tokenizer(prompt).input_ids), max_new_tokens=8, ignore_eos=True)
        for prompt in PROMPTS
    ]
    plan = BatchPlan.in_order(len(requests), len(requests))
    jobs = [engine.job(requests, plan, policy) for policy in POLICIES.values()]
    names = {number: name for number, name in enumerate(POLICIES)}
    active = {names[job]: lane.active_experts for job, lane in engine.run_jobs(jobs)}
    engine.close()
    checked = dict.fromkeys(POLICIES, 0)
    for number, logits, weights, experts, new_weights, new_experts, (decode, rows) in spy.seen:
        router = other.routers[number]
        for at, lane in enumerate(rows.lanes):
            mine = torch.from_numpy(rows.place_T == at) & decode
            if not mine.any():
                continue
            count, policy = int(mine.sum()), lane.acting.policy
            order = logits[mine].gather(-1, experts[mine].long()).argsort(dim=-1, descending=True, stable=True)
            given = Routing(
                logits=logits[mine].float(),
                experts=experts[mine].long().gather(-1, order),
                weights=weights[mine].gather(-1, order),
            )
            step = StepContext(
                layer=number,
                decode=torch.ones(count, dtype=torch.bool),
                lane=torch.zeros(count, dtype=torch.long),
                live=torch.ones(count, dtype=torch.bool),
                num_lanes=1,
                key=torch.tensor([int(rows.key_G[at])]),
                row=torch.from_numpy(rows.row_T)[mine],
            )
            wanted = other.bind(policy)(given, step, router.rule)
            assert as_sets(wanted.experts, wanted.weights) == as_sets(new_experts[mine], new_weights[mine]), (
                policy.label
            )
            checked[policy.name] += count
    assert all(count == 8 * 7 * 4 for count in checked.values()), checked
    means = {name: torch.tensor(each).double().mean().item() for name, each in active.items()}
    with capsys.disabled():
        print("\nactive experts a layer, 8 rows: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items()))


def test_the_routing_simulator_is_a_second_way_to_the_same_tokens(monkeypatch):
    """vLLM's own registry of routing strategies, with a mask made here: nothing of the plugin takes part."""
    from vllm.forward_context import get_forward_context
    from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulator, RoutingStrategy

    from lynx_exp.routing import RouterRule, Routing, StepContext

    policy = build_policy("lynx_v1_latency", keep_experts=4)

    class Strategy(RoutingStrategy):
        def route_tokens(self, hidden_states, router_logits, top_k, indices_type=None):
            logits = router_logits.float()
            values, experts = logits.topk(top_k, -1)
            metadata = get_forward_context().attn_metadata
            if isinstance(metadata, dict):
                metadata = next(iter(metadata.values()))
            live = torch.zeros(len(logits), dtype=torch.bool)
            if metadata is not None:
                start = metadata.query_start_loc
                count = start[1:] - start[:-1]
                decodes = (count == 1) & (metadata.seq_lens[: len(count)] > 1)
                live[: int(start[-1])] = decodes.repeat_interleave(count)
            step = StepContext(
                layer=0,
                decode=live,
                lane=torch.zeros(len(logits), dtype=torch.long),
                live=live,
                num_lanes=1,
                key=torch.zeros(1, dtype=torch.long),
                row=torch.arange(len(logits)),
            )
            made = policy(Routing(logits=logits, experts=experts, weights=values.softmax(-1)), step, RouterRule())
            return made.weights, made.experts.to(indices_type or torch.int32)

    with started(QUARTER) as llm:
        own = say(llm)
    RoutingSimulator.register_strategy("lynx_test", Strategy())
    monkeypatch.setenv("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "lynx_test")
    with started(None) as llm:
        assert say(llm) == own
    with pytest.raises(ValueError, match="VLLM_MOE_ROUTING_SIMULATION_STRATEGY=lynx_test"), started(QUARTER):
        pass


SCHEMES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax, not renormalised": {"renormalize": False},
    "softmax in groups": {"use_grouped_topk": True, "num_expert_group": 4, "topk_group": 2},
    "sigmoid in groups, bias, scaled": {
        "use_grouped_topk": True,
        "num_expert_group": 4,
        "topk_group": 2,
        "scoring_func": "sigmoid",
        "e_score_correction_bias": torch.linspace(-0.2, 0.3, 16),
        "routed_scaling_factor": 2.5,
    },
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_rules_of_vllms_own_routers_are_proved(scheme):
    from vllm.model_executor.layers.fused_moe.router.router_factory import create_fused_moe_router

    from lynx_exp.vllm_plugin.layers import prove_router

    given = SCHEMES[scheme]
    router = create_fused_moe_router(top_k=4, global_num_experts=16, **given)
    rule = prove_router(router, torch.float32, torch.device("cpu"))[0]()
    assert rule.score == given.get("scoring_func", "softmax")
    assert rule.renormalize == given.get("renormalize", True)
    assert (rule.groups, rule.top_groups) == (given.get("num_expert_group", 1), given.get("topk_group", 1))
    assert rule.scaling == given.get("routed_scaling_factor", 1.0)
    assert (rule.bias is None) == ("e_score_correction_bias" not in given)
