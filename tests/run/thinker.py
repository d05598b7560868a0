"""A checkpoint that thinks: a tiny random Qwen3-MoE with a tokenizer of bytes and a chat template with a switch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

MARKER = "</think>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "top_k": 50}
LIKELY = 3.0
"""Logit of the marker in a usual state, where those of other tokens are about 0: a thought of some twenty tokens."""


def tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(letters, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    made.add_tokens([AddedToken(name, special=False) for name in ("<think>", MARKER)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = template
    return fast


@torch.no_grad()
def save(folder: Path, template: str = TEMPLATE, generation: dict[str, Any] | None = SAMPLED) -> Path:
    """The folder of the checkpoint. `generation`: its generation_config.json; None: none. At temperature 1 some of its
    thoughts end and some do not."""
    words = tokenizer(template)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        pad_token_id=words.eos_token_id,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    model.lm_head.weight.mul_(0.3)
    usual = model.model(torch.arange(256)[None]).last_hidden_state.mean((0, 1))
    model.lm_head.weight[words.get_vocab()[MARKER]] = LIKELY * usual / (usual @ usual)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    words.save_pretrained(folder)
    return folder
