"""The sizes of a model in the words of any family: which fields of its configuration hold them, and what follows."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import AutoConfig, PreTrainedConfig

SIZES = ("experts", "top_k", "layers", "hidden", "expert_hidden", "heads", "kv_heads", "vocab", "positions")
"""Experts of a layer, experts of a token, layers, width of a token, width inside an expert (and a dense layer), heads
that ask, heads that are asked, tokens of the vocabulary, positions that a model takes at most."""

_LAYERS = r"num_hidden_layers|num_layers|n_layers"
_FIELDS = {
    r"(n_routed|num_local|moe_num|num)_experts": "experts",
    r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts": "top_k",
    r"n_group|num_expert_group": "groups",
    r"topk_group": "top_groups",
    r"(unpadded_)?vocab_size(_per_layer_input)?": "vocab",
    r"hidden_size(_per_layer_input)?|d_model|router_hidden_size": "hidden",
    r"\w*intermediate_size(_mlp)?|\w*ffn_hidden_size": "expert_hidden",
    _LAYERS: "layers",
    r"\w*num_attention_heads|n_heads|index_n_heads|(mamba|linear)_num(_key|_value)?_heads|mamba_n_heads": "heads",
    r"\w*num_key_value_heads|kv_n_heads|n_groups": "kv_heads",
    r"qk_head_dim": "two_heads_wide",
    r"\w*head_dim|kv_channels|\w+_lora_rank|mamba_d_state|ssm_state_size": "head",
    r"max_position_embeddings|max_seq_len|model_max_length": "positions",
    r"first_k_dense_replace|num_dense_layers|num_nextn_predict_layers|num_mtp_layers": "none",
    r"index_topk": "chosen_positions",
    r"pad_token_id": "pad",
    r"bos_token_id": "bos",
    r"eos_token_id": "eos",
}
"""Field of a configuration: which of `SIZES` it holds, or which of the numbers that follow from them (`_numbers`)."""

_MORE: dict[str, dict[str, object]] = {
    "dbrx": {"attn_config": {"kv_n_heads": "kv_heads", "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"n_group": "groups", "topk_group": "top_groups", "topk_method": "group_limited_greedy"},
    "doge": {"is_moe": True, "num_experts": 64},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {"vision_config": {"adapter_out_dim": "hidden"}, "audio_config": {"adapter_out_dim": "hidden"}},
    "flint": {"mlp_only_layers": []},
    "gemma4_text": {"enable_moe_block": True},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1, "expert_layer_offset": 0},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": "head",
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type: fields that the sizes do not fit, or that its MoE needs."""

_KINDS = {
    "dots3_note_text": ["indexed_attention"],
    "granitemoehybrid": ["linear_attention", "full_attention"],
    "lfm2_moe": ["conv", "full_attention"],
}
"""Model type: the kinds of its layers, in turns, where the default configuration does not list all that it can have."""

_FIRST_BLOCK = {"deepseek_v4": "hash_moe"}
"""Model type: what the block of its first layer is, where that is of a kind of its own."""


def sized_fields(
    model_type: str, sizes: Mapping[str, int], fixed: Mapping[str, int] | None = None
) -> dict[str, object]:
    """Fields of a `model_type` configuration that give every layer that can have experts these sizes.

    `sizes` holds all of `SIZES`. `fixed`: pattern of a field -> its number, for fields that are no size. There are at
    least as many layers as the family has kinds of layers.
    """
    return _sized(AutoConfig.for_model(model_type), _numbers(sizes), fixed or {})


def random_fields(model_type: str, sizes: Mapping[str, int], fields: Mapping[str, object]) -> dict[str, object]:
    """Fields of the configuration of a random model: those that `sizes` asks for, where it asks, and `fields` over
    them."""
    return {**(sized_fields(model_type, sizes) if sizes else {}), **fields}


def _numbers(sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes`, and what follows from them."""
    grouped = sizes["experts"] % 4 == 0 and sizes["top_k"] <= sizes["experts"] // 2
    head = max(2, sizes["hidden"] // sizes["heads"])
    return {
        **sizes,
        "groups": 4 if grouped else 1,
        "top_groups": 2 if grouped else 1,
        "head": head,
        "two_heads_wide": 2 * head,
        "chosen_positions": 64,
        "none": 0,
        "pad": 0,
        "bos": 1,
        "eos": 2,
    }


def _sized(config: PreTrainedConfig, numbers: Mapping[str, int], fixed: Mapping[str, int]) -> dict[str, object]:
    fields = config.to_dict()
    listed = [name for name in ("layer_types", "layers_block_type") if fields.get(name)] or ["layer_types"]
    kinds = _KINDS.get(config.model_type) or list(dict.fromkeys(fields.get(listed[0]) or []))
    layers = max(numbers["layers"], len(kinds))
    numbers = {**numbers, "layers": layers}
    found: dict[str, object] = {}
    for field, value in fields.items():
        number = _number_of(field, numbers, fixed)
        if field in config.sub_configs and not re.search("vision|audio", field):
            found[field] = _sized(getattr(config, field), numbers, fixed) if value else None
        elif number is not None and (
            value is not None
            or not re.fullmatch(r"\w*_group|\w+_lora_rank|sliding_window\w*|attention_chunk_size", field)
        ):
            found[field] = number
    if kinds:
        found[listed[0]] = (kinds * layers)[:layers]
    if fields.get("mlp_layer_types"):
        first = [_FIRST_BLOCK[config.model_type]] if config.model_type in _FIRST_BLOCK else []
        found["mlp_layer_types"] = [*first, *[fields["mlp_layer_types"][-1]] * layers][:layers]
    if "per_layer_config" in fields:
        found["per_layer_config"] = {}
    if fields.get("kv_lora_rank"):  # latent attention has no groups of heads
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found | _named(_MORE.get(config.model_type, {}), numbers)


def _number_of(field: str, numbers: Mapping[str, int], fixed: Mapping[str, int]) -> int | None:
    for pattern, number in fixed.items():
        if re.fullmatch(pattern, field):
            return number
    return next((numbers[size] for pattern, size in _FIELDS.items() if re.fullmatch(pattern, field)), None)


def _named(more: Mapping[str, object], numbers: Mapping[str, int]) -> dict[str, object]:
    """`more`, with numbers in place of the names of numbers."""
    return {
        field: _named(value, numbers)
        if isinstance(value, dict)
        else numbers.get(value, value)
        if isinstance(value, str)
        else value
        for field, value in more.items()
    }
