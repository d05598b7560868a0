"""A tiny random model of any family: the default configuration with every size shrunk, its routers made to matter.

E experts.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lynx_exp.models.routers import router_classes

EXPERTS, TOP_K = 8, 3

_LAYERS = r"num_hidden_layers|num_layers|n_layers"
_SIZES = {
    r"(n_routed|num_local|moe_num|num)_experts": EXPERTS,
    r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts": TOP_K,
    r"n_group|num_expert_group": 4,
    r"topk_group": 2,
    r"(unpadded_)?vocab_size(_per_layer_input)?": 128,
    r"hidden_size(_per_layer_input)?|d_model|router_hidden_size": 64,
    r"\w*intermediate_size(_mlp)?|\w*ffn_hidden_size": 32,
    _LAYERS: 2,
    r"\w*num_attention_heads|n_heads|index_n_heads|(mamba|linear)_num(_key|_value)?_heads|mamba_n_heads": 4,
    r"\w*num_key_value_heads|kv_n_heads|n_groups": 2,
    r"qk_head_dim": 32,
    r"\w*head_dim|kv_channels|\w+_lora_rank|mamba_d_state|ssm_state_size": 16,
    r"max_position_embeddings|max_seq_len|model_max_length": 256,
    r"first_k_dense_replace|num_dense_layers|num_nextn_predict_layers|num_mtp_layers": 0,
    r"index_topk": 64,
    r"sliding_window(_size)?|attention_chunk_size": 8,
    r"pad_token_id": 0,
    r"bos_token_id": 1,
    r"eos_token_id": 2,
}
"""Field of a configuration: its tiny value. Experts are 8 and nothing else is."""

_MORE: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe", "moe"]},
    "doge": {"is_moe": True, "num_experts": 64},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"vision_config": {"adapter_out_dim": 64}, "audio_config": {"adapter_out_dim": 64}},
    "dots3_note_text": {"layer_types": ["indexed_attention"] * 2},
    "flint": {"mlp_only_layers": []},
    "gemma4_text": {"enable_moe_block": True},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1, "expert_layer_offset": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type: fields that the sizes above do not fit, or that its MoE needs."""


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A configuration of `model_type` with 8 experts and top-3 in every layer that can have them, other fields by
    `changes`."""
    return AutoConfig.for_model(model_type, **_shrunk(AutoConfig.for_model(model_type)) | changes)


def tiny_model(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of `tiny_config`, whose routers choose clearly and by biases that matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)).eval()
    _stir(model)
    return model


def _shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    fields = config.to_dict()
    kinds = list(dict.fromkeys(fields.get("layer_types") or []))
    layers = max(2, len(kinds))
    small: dict[str, Any] = {}
    for field, value in fields.items():
        size = next((size for pattern, size in _SIZES.items() if re.fullmatch(pattern, field)), None)
        if field in config.sub_configs and not re.search("vision|audio", field):
            small[field] = _shrunk(getattr(config, field)) if value else None
        elif size is not None and (
            value is not None
            or not re.fullmatch(r"\w*_group|\w+_lora_rank|sliding_window\w*|attention_chunk_size", field)
        ):
            small[field] = layers if re.fullmatch(_LAYERS, field) else size
    if kinds:
        small["layer_types"] = (kinds * layers)[:layers]
    if fields.get("mlp_layer_types"):
        small["mlp_layer_types"] = [fields["mlp_layer_types"][-1]] * layers
    if "per_layer_config" in fields:
        small["per_layer_config"] = {}
    if fields.get("kv_lora_rank"):  # latent attention has no groups of heads
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small | _MORE.get(config.model_type, {})


@torch.no_grad()
def _stir(model: nn.Module) -> None:
    """Widen the routers' weights, so that tokens differ, and set what holds one number for each expert to random
    numbers."""
    classes = router_classes(model)
    for name, module in model.named_modules():
        if isinstance(module, classes):
            parent = model.get_submodule(name.rpartition(".")[0])
            for part, tensor in [*parent.named_parameters(), *parent.named_buffers()]:
                if tensor.dim() == 2 and tensor.shape[0] == EXPERTS:
                    tensor.normal_(std=0.5)
                elif tensor.numel() == EXPERTS and "scale" in part:
                    tensor.uniform_(0.5, 1.5)
                elif tensor.numel() == EXPERTS:
                    tensor.uniform_(-0.25, 0.25)
