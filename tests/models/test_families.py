"""Routers of several architectures: found, proved, attached, detached; others refused by name."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lynx_exp.engine import Engine
from lynx_exp.models import Attachment, Rows, UnsupportedModel, find_routers
from lynx_exp.routing import build_policy

COMMON = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES = {
    # architecture: (configuration, renormalises)
    "mixtral": (COMMON | {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}, True),
    "qwen3_moe": (COMMON | MOE | {"norm_topk_prob": True, "head_dim": 8}, True),
    "qwen2_moe": (COMMON | MOE | {"norm_topk_prob": False, "shared_expert_intermediate_size": 32}, False),
    "olmoe": (COMMON | {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": False}, False),
    "granitemoe": (COMMON | {"num_local_experts": 8, "num_experts_per_tok": 2}, True),
    "dbrx": (
        {
            "vocab_size": 100,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": 32},
            "pad_token_id": 0,
            "eos_token_id": 2,
        },
        True,
    ),
}


def build(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family][0])
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter.shape[0] == 8:  # the routers: wide enough that tokens differ
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_routers_are_found_and_their_rule_proved(family: str) -> None:
    routers = find_routers(build(family))
    assert [r.layer for r in routers] == [0, 1]
    assert {(r.num_experts, r.top_k) for r in routers} == {(8, 2)}
    assert all(r.rule.score == "softmax" and r.rule.renormalize == FAMILIES[family][1] for r in routers)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_attach_control_prune_detach(family: str) -> None:
    model = build(family)
    routers = find_routers(model)
    ids = torch.arange(24).view(2, 12) + 3
    plain = model(input_ids=ids).logits
    ones = torch.ones(24, dtype=torch.bool)
    rows = Rows(decode=ones, lane=torch.zeros(24, dtype=torch.long), live=ones, num_lanes=1, key=torch.tensor([0]))

    def logits(name: str, **parameters: int) -> tuple[torch.Tensor, list]:
        with Attachment(routers, build_policy(name, **parameters)) as attachment:
            attachment.rows, attachment.record = rows, []
            return model(input_ids=ids).logits, attachment.record

    control, before = logits("no_drop")
    pruned, after = logits("lynx_v1_latency", keep_experts=3)
    assert torch.equal(control, plain)
    assert not torch.allclose(pruned, plain)
    assert len(before) == len(after) == 2
    assert all(len(experts.unique()) > 3 for experts, _ in before)
    assert all(len(experts.unique()) == 3 for experts, _ in after)
    assert torch.equal(model(input_ids=ids).logits, plain), "detaching must leave no trace"
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_decodes_every_family_as_transformers_does(family: str) -> None:
    model = build(family)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13], [14, 15]]
    run = Engine(model).generate(prompts, batch_size=4, max_new_tokens=8)
    for prompt, tokens in zip(prompts, run.token_ids, strict=True):
        ids = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8, do_sample=False
        )
        assert tokens == ids[0, len(prompt) :].tolist()


def test_a_policy_without_rows_is_an_error_not_a_vanilla_run() -> None:
    model = build("mixtral")
    with Attachment(find_routers(model), build_policy("lynx")), pytest.raises(RuntimeError, match="rows"):
        model(input_ids=torch.tensor([[1, 2]]))


def test_a_dense_model_is_refused_by_name() -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **COMMON))
    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM: not a Mixture-of-Experts"):
        find_routers(model)


def test_a_router_with_a_correction_bias_is_refused_by_name() -> None:
    extra = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 0}
    groups = {"n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8}
    heads = {"v_head_dim": 8, "qk_nope_head_dim": 8, "num_key_value_heads": 4}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v3", **COMMON | extra | groups | heads))
    with pytest.raises(UnsupportedModel, match="DeepseekV3ForCausalLM"):
        find_routers(model)


def test_a_router_that_scores_by_no_known_rule_is_refused() -> None:
    model = build("mixtral")
    gate = model.model.layers[1].mlp.gate
    original = gate.forward

    def doubled(hidden: torch.Tensor) -> tuple:
        logits, weights, experts = original(hidden)
        return logits, weights * 2, experts

    gate.forward = doubled
    with pytest.raises(UnsupportedModel, match=r"model.layers.1.mlp.gate .MixtralTopKRouter.: scores experts by none"):
        find_routers(model)
