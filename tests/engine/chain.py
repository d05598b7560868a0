"""A model that says what it is told to: every token has one successor. And tokenizers of the kinds that differ.

Its attention and its experts add nothing, its embedding is the identity, its head a permutation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

STOCK_SPECIAL = "<|im_end|>"
WORDS = ("the", "cat", "sat", "on", "a", "mat", "Q", "User")


@torch.no_grad()
def chain_model(said: Sequence[int], vocabulary: int, **config) -> MixtralForCausalLM:
    """After a token of `said`, all different, comes the next of them; after the last one the first."""
    assert len(set(said)) == len(said)
    size = -(-vocabulary // 8) * 8
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=vocabulary,
            hidden_size=size,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=None,
            **config,
        )
    ).eval()
    model.model.embed_tokens.weight.copy_(torch.eye(vocabulary, size))
    model.model.layers[0].self_attn.o_proj.weight.zero_()
    model.model.layers[0].mlp.experts.down_proj.zero_()
    model.lm_head.weight.zero_()
    for token, following in zip(said, [*said[1:], said[0]], strict=True):
        model.lm_head.weight[following, token] = 1.0
    return model


def sentence_piece() -> PreTrainedTokenizerFast:
    """As of Llama 2: words begin with a blank, the first of a text loses it, and bytes spell what has no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", ":", "\n", ",", "."]
    pieces += [*(f"▁{word}" for word in WORDS), *WORDS]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(made, "</s>")


def byte_level() -> PreTrainedTokenizerFast:
    """As of GPT-2: every byte is a piece, and some words are."""
    pieces = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *(f"Ġ{word}" for word in WORDS),
        *WORDS,
        "Us",
        "Use",
        "</s>",
    ]
    merges = [("U", "s"), ("Us", "e"), ("Use", "r")]
    made = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _fast(made, "</s>")


def word_piece() -> PreTrainedTokenizerFast:
    """As of BERT: a blank stands between pieces, but before those that go on."""
    pieces = ["[UNK]", "</s>", ":", ",", ".", *WORDS, *(f"##{word}" for word in WORDS)]
    made = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return _fast(made, "</s>")


TOKENIZERS = {"sentence_piece": sentence_piece, "byte_level": byte_level, "word_piece": word_piece}


def _fast(made: Tokenizer, eos: str) -> PreTrainedTokenizerFast:
    made.add_special_tokens([AddedToken(STOCK_SPECIAL, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, pad_token=eos)
