"""What is measured of a layer, against plain NumPy on the experts' outputs and against the model's own block."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lynx_exp.models import UnsupportedModel, find_routers
from lynx_exp.models.tiny import tiny_model
from lynx_exp.prepare import layer_facts as facts_module
from lynx_exp.prepare.single_experts import find_experts
from tests.prepare.conftest import COPY, LENGTHS, ORIGINAL, SEED, Observation, observe, tiny


def pairs(outputs: np.ndarray, of_pair) -> np.ndarray:
    return np.array([[of_pair(a, b) for b in outputs] for a in outputs])


def unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. (2012), equation 5, term by term."""
    n, one = len(x), np.ones(len(x))
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    total = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def plain_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return (cosines.mean() + 1) / 2


@pytest.mark.parametrize("layer", [0, 1])
def test_similarities_are_the_closed_forms(seen: Observation, layer: int) -> None:
    outputs = seen.experts_of(layer)
    found = seen.facts[layer].similarity()
    assert seen.facts[layer].tokens == len(seen.hidden[layer]) <= facts_module.CHUNK_TOKENS
    assert np.allclose(found["cosine"], pairs(outputs, cosine), atol=1e-5)
    distance = pairs(outputs, lambda a, b: np.linalg.norm(a - b))
    assert np.allclose(found["frobenius"], 1 - distance / distance.max(), atol=1e-5)
    own = [unbiased_hsic(x, x) for x in outputs]
    hsic = pairs(outputs, unbiased_hsic)
    assert np.allclose(found["cka"], np.clip(hsic / np.sqrt(np.outer(own, own)), 0, 1), atol=1e-5)


def test_similarities_are_shares_symmetric_and_one_on_the_diagonal(seen: Observation) -> None:
    for layer in seen.facts:
        for alike_EE in layer.similarity().values():
            assert alike_EE.dtype == torch.float32 and ((alike_EE >= 0) & (alike_EE <= 1)).all()
            assert torch.equal(alike_EE, alike_EE.T) and (alike_EE.diagonal() == 1).all()


def test_two_equal_experts_are_each_others_most_similar(seen: Observation) -> None:
    for alike_EE in seen.facts[0].similarity().values():
        assert alike_EE[COPY, ORIGINAL] == pytest.approx(1, abs=1e-6)
        others_EE = alike_EE.clone().fill_diagonal_(-1)
        assert others_EE[COPY].argmax() == ORIGINAL and others_EE[ORIGINAL].argmax() == COPY
        assert others_EE[0].max() < 0.99


def test_chunks_change_neither_cosine_nor_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = observe(tiny("mixtral"), 3).facts[1].similarity()
    monkeypatch.setattr(facts_module, "CHUNK_TOKENS", 20)
    parts = observe(tiny("mixtral"), 3).facts[1].similarity()
    for metric in ("cosine", "frobenius"):
        assert torch.allclose(whole[metric], parts[metric], atol=1e-6)
    assert not torch.equal(whole["cka"], parts["cka"])


def test_cka_in_chunks_tends_to_plain_linear_cka() -> None:
    many = observe(tiny("mixtral"), 60)
    outputs = many.experts_of(1)
    assert outputs.shape[1] > 2000
    assert np.allclose(many.facts[1].similarity()["cka"], pairs(outputs, plain_cka), atol=0.03)


def test_ratios_are_the_medians_over_tokens(seen: Observation) -> None:
    for number, layer in enumerate(seen.model.model.layers):
        logits = seen.hidden[number] @ layer.mlp.gate.weight.double().numpy().T
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        best = -np.sort(-scores, axis=-1)[:, : layer.mlp.gate.top_k]
        ratio = seen.facts[number].ratio()
        assert ratio[0] == 1
        assert np.allclose(ratio, np.median(best / best[:, :1], axis=0), rtol=1e-5)


def test_saliency_and_largest_are_those_of_the_tokens_that_are_routed_there(seen: Observation) -> None:
    """REAP's equation 9, one expert and token at a time."""
    for number, layer in enumerate(seen.model.model.layers):
        gate, outputs = layer.mlp.gate, seen.experts_of(number)
        with torch.no_grad():
            _, weights, experts = gate(torch.from_numpy(seen.hidden[number]).float())
        norms: dict[int, list[float]] = {e: [] for e in range(len(outputs))}
        highest = dict.fromkeys(norms, 0.0)
        for t, row in enumerate(experts.tolist()):
            for e, weight in zip(row, weights[t].tolist(), strict=True):
                norms[e].append(weight * float(np.linalg.norm(outputs[e, t])))
                highest[e] = max(highest[e], float(np.abs(outputs[e, t]).max()))
        wanted = [float(np.mean(each)) if each else 0.0 for each in norms.values()]
        assert seen.facts[number].saliency().tolist() == pytest.approx(wanted, rel=1e-4)
        assert seen.facts[number].largest().tolist() == pytest.approx(list(highest.values()), rel=1e-4)


def test_divergence_is_the_blocks_own_loss_by_a_smaller_top_k(seen: Observation) -> None:
    for number, layer in enumerate(seen.model.model.layers):
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.cat([torch.randn(length, 16, generator=generator) for length in LENGTHS])[None]
        gate, top_k = layer.mlp.gate, layer.mlp.gate.top_k
        outputs = []
        for k in range(1, top_k + 1):
            gate.top_k = k
            out = layer.mlp(noise)
            outputs.append(out[0] if isinstance(out, tuple) else out)
        wanted = [(out - outputs[-1]).norm(dim=-1).mean().item() for out in outputs]
        found = seen.facts[number].divergence()
        assert found[-1] == 0 and (found[:-1] > 0).all()
        assert found.tolist() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("family", ["dbrx", "deepseek_v3", "gemma4_text", "gpt_oss"])
def test_single_experts_of_other_families_are_found_and_proved(family: str) -> None:
    model = tiny_model(family)
    assert len({id(experts.module) for experts in find_experts(model, find_routers(model))}) == 2
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_experts_that_weigh_their_inputs_are_refused_by_name() -> None:
    model = tiny_model("llama4_text")
    with pytest.raises(UnsupportedModel, match="Llama4ForCausalLM: .*router: its experts cannot be run one by one: no"):
        find_experts(model, find_routers(model))


def test_experts_that_do_not_add_up_are_refused() -> None:
    model = tiny("mixtral")
    experts = model.model.layers[1].mlp.experts
    original = experts.forward
    experts.forward = lambda hidden, index, weights: original(hidden, index, weights.square())
    with pytest.raises(UnsupportedModel, match=r"model.layers.1.mlp.gate: .* not the weighted sum"):
        find_experts(model, find_routers(model))
