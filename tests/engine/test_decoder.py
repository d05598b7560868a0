"""The direct decode step: taken where it equals the model's own, left where the model was tampered with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn

from lynx_exp import Engine
from lynx_exp.engine.decoding.decoder import DIRECT, DirectDecoder, PlainDecoder, choose_decoder
from lynx_exp.engine.decoding.prompts import prefill
from lynx_exp.engine.kv_cache.cursor import Cursor
from lynx_exp.engine.kv_cache.slots import Slots
from lynx_exp.models.experts import PER_EXPERT_EXACT
from lynx_exp.models.tiny import tiny_model


def built(family: str, **changes: Any) -> Any:
    model = tiny_model(family, **changes)
    model.set_experts_implementation(PER_EXPERT_EXACT)
    return model


@pytest.fixture(scope="module", params=DIRECT)
def model(request: pytest.FixtureRequest) -> Any:
    return built(request.param)


@torch.inference_mode()
def decoded(model: Any, kind: type, lengths: list[int], steps: int) -> torch.Tensor:
    """`[steps, R, V]` logits of some rows at different positions, beside dead rows and over more than 64 columns."""
    draw = torch.Generator().manual_seed(7)
    vocabulary = model.get_input_embeddings().num_embeddings
    prompts = [tuple(torch.randint(vocabulary, (n,), generator=draw).tolist()) for n in lengths]
    made = prefill(model, prompts)
    rows, slots = len(lengths), Slots(made, len(lengths) + 3, 192)
    slots.load(list(range(rows)), made, list(range(rows)))
    position = torch.tensor([*lengths, 0, 0, 0])
    cursor = Cursor(torch.arange(rows + 3), position, 128)
    decoder, found = kind(model, slots, cursor), []
    for token_R in torch.randint(vocabulary, (steps, rows + 3), generator=draw):
        found.append(decoder.step(token_R)[:rows])
        cursor.position = cursor.position + 1
    return torch.stack(found)


def traces(model: nn.Module) -> list[Any]:
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in model.modules()]
    own = [name for name, module in model.named_modules() if "forward" in vars(module)]
    return [any(map(any, hooks)), own, model.training, model.config.to_dict()]


def test_it_is_chosen_and_equals_the_models_own_step(model: Any) -> None:
    before = traces(model)
    assert choose_decoder(model) is DirectDecoder
    assert traces(model) == before
    lengths, steps = [1, 5, 33, 64, 100], 4
    ours, theirs = (decoded(model, kind, lengths, steps) for kind in (DirectDecoder, PlainDecoder))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 1e-2


@torch.inference_mode()
def test_both_equal_a_plain_pass_without_slots(model: Any) -> None:
    """One row, token by token in slots, against the whole sequence at once."""
    ids = torch.randint(3, 128, (1, 12), generator=torch.Generator().manual_seed(1))
    expected = model(ids, use_cache=False).logits[0, 5:]
    for kind in (DirectDecoder, PlainDecoder):
        made = prefill(model, [tuple(ids[0, :5].tolist())])
        slots = Slots(made, 1, 64)
        slots.load([0], made, [0])
        cursor = Cursor(torch.arange(1), torch.tensor([5]), 64)
        decoder = kind(model, slots, cursor)
        for at in range(5, 12):
            assert torch.allclose(decoder.step(ids[0, at : at + 1])[0], expected[at - 5], rtol=0, atol=1e-5)
            cursor.position = cursor.position + 1


@pytest.mark.parametrize(
    "family,changes",
    [
        ("olmoe", {"clip_qkv": 8.0}),
        ("qwen2_moe", {"mlp_only_layers": [0]}),
        ("mixtral", {"tie_word_embeddings": True}),
        ("qwen3_moe", {"attention_bias": True}),
    ],
)
def test_variants_of_these_families_equal_the_models_own_step(family: str, changes: dict[str, Any]) -> None:
    """Whichever is chosen."""
    model = built(family, **changes)
    kind = choose_decoder(model)
    assert kind is (PlainDecoder if "clip_qkv" in changes else DirectDecoder)
    ours, theirs = (decoded(model, which, [3, 40], 2) for which in (kind, PlainDecoder))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["granitemoe", "deepseek_v3", "ernie4_5_moe"])
def test_other_families_take_their_own_step(family: str) -> None:
    assert choose_decoder(built(family)) is PlainDecoder


def _scaled_residual(model: Any) -> None:
    layer = model.model.layers[1]
    own = layer.forward

    def forward(_self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden + 0.22 * (own(hidden, *args, **kwargs) - hidden)

    layer.forward = MethodType(forward, layer)


def _layer_norm(model: Any) -> None:
    model.model.layers[0].input_layernorm = nn.LayerNorm(64)


class _CentredNorm(nn.Module):
    """Looks like the family's RMS norm and is another."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden - hidden.mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def _centred_norm(model: Any) -> None:
    model.model.layers[1].post_attention_layernorm = _CentredNorm(model.model.layers[1].post_attention_layernorm)


def _steered(model: Any) -> None:
    model.model.layers[0].register_forward_hook(lambda _module, _inputs, out: out + 0.3)


def _scaled_embeddings(model: Any) -> None:
    own = model.model.forward
    model.model.forward = lambda **kwargs: own(
        **(kwargs | {"input_ids": None, "inputs_embeds": model.model.embed_tokens(kwargs["input_ids"]) * 1.5})
    )


def _scaled_logits(model: Any) -> None:
    own = model.forward

    def forward(**kwargs: Any) -> Any:
        out = own(**kwargs)
        out.logits = out.logits / 4.0
        return out

    model.forward = forward


def _capped_attention(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    own = attention.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out, weights = own(*args, **kwargs)
        return out.tanh() * 0.5, weights

    attention.forward = forward


TAMPERINGS = [
    _scaled_residual,
    _layer_norm,
    _centred_norm,
    _steered,
    _scaled_embeddings,
    _scaled_logits,
    _capped_attention,
]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__[1:])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_model_that_was_tampered_with_takes_its_own_step(family: str, tamper: Callable[[Any], None]) -> None:
    model = built(family)
    tamper(model)
    before = traces(model)
    assert choose_decoder(model) is PlainDecoder
    assert traces(model) == before


def test_a_position_table_that_grows_is_read_as_the_model_reads_it() -> None:
    """`dynamic` frequencies change with the furthest position: of a row, not of the slots' capacity."""
    model = built(
        "mixtral",
        max_position_embeddings=100,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
    frequencies = model.model.rotary_emb.inv_freq.clone()
    assert choose_decoder(model) is PlainDecoder
    ours, theirs = (decoded(model, kind, [3, 40], 2) for kind in (choose_decoder(model), PlainDecoder))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)


@pytest.fixture
def plain(engine: Engine) -> Iterator[None]:
    kind = engine._decoder
    engine._decoder = PlainDecoder
    yield
    engine._decoder = kind


def test_an_engine_answers_alike_through_both(engine: Engine, prompts: list[list[int]], plain: None) -> None:
    theirs = engine.generate(prompts[:12], batch_size=4, max_new_tokens=8)
    engine._decoder = None
    assert engine.generate(prompts[:12], batch_size=4, max_new_tokens=8).token_ids == theirs.token_ids
    assert engine._decoder is DirectDecoder
