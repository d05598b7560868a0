"""The loop over active experts equals transformers' own, runs nothing for weight 0, and treats every row alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lynx_exp.models.experts import PER_EXPERT, PER_EXPERT_EXACT, per_expert, per_expert_exact
from lynx_exp.models.tiny import EXPERTS, TOP_K, tiny_model

FAMILIES = {"mixtral": {}, "qwen3_moe": {}, "gpt_oss": {"max_position_embeddings": 4096}}
"""gpt_oss: biases, transposed weights, a gate of its own."""
WAYS = {PER_EXPERT: per_expert, PER_EXPERT_EXACT: per_expert_exact}


def experts_of(model: torch.nn.Module) -> Any:
    """The first layer's experts."""
    return next(module for name, module in model.named_modules() if name.endswith(".experts"))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    model = tiny_model(request.param, **FAMILIES[request.param])
    for name, parameter in experts_of(model).named_parameters():
        if "bias" in name:  # they begin as zeros
            parameter.data.normal_(generator=torch.Generator().manual_seed(3))
    return model


@pytest.fixture(scope="module")
def experts(model: Any) -> Any:
    return experts_of(model)


def routed(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, experts and weights; every fifth slot has weight 0."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 64, generator=draw)
    chosen = torch.rand(rows, EXPERTS, generator=draw).argsort(-1)[:, :TOP_K]
    weights = torch.rand(rows, TOP_K, generator=draw)
    weights.view(-1)[::5] = 0
    return hidden, chosen, weights


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 7, 16, 90])
@torch.inference_mode()
def test_equals_the_eager_loop(experts: Any, way: str, rows: int) -> None:
    given = routed(rows)
    experts.config._experts_implementation = "eager"
    expected = experts(*given)
    experts.config._experts_implementation = way
    assert torch.allclose(experts(*given), expected, rtol=0, atol=1e-5)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("way", WAYS)
@torch.inference_mode()
def test_a_whole_model_equals_eager(model: Any, way: str) -> None:
    ids = torch.randint(3, 128, (3, 11), generator=torch.Generator().manual_seed(0))
    model.set_experts_implementation("eager")
    expected = model(ids).logits
    model.set_experts_implementation(way)
    assert torch.allclose(model(ids).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@torch.inference_mode()
def test_slots_of_weight_0_run_nothing(experts: Any, way: str) -> None:
    """An expert of NaNs whose slots all have weight 0 is never touched; with any weight it would be."""
    hidden, chosen, weights = routed(20)
    weights[chosen == 5] = 0
    kept = {name: parameter.clone() for name, parameter in experts.named_parameters()}
    expected = WAYS[way](experts, hidden, chosen, weights)
    try:
        for parameter in experts.parameters():
            parameter[5] = torch.nan
        found = WAYS[way](experts, hidden, chosen, weights)
        assert torch.equal(found, expected)
        weights[chosen == 5] = 0.5
        assert WAYS[way](experts, hidden, chosen, weights).isnan().any()
    finally:
        for name, parameter in experts.named_parameters():
            parameter.copy_(kept[name])


@pytest.mark.parametrize("way", WAYS)
@torch.inference_mode()
def test_rows_that_run_nothing_are_zero(experts: Any, way: str) -> None:
    hidden, chosen, weights = routed(6)
    weights[:] = 0
    assert torch.equal(WAYS[way](experts, hidden, chosen, weights), torch.zeros_like(hidden))
    weights[2, 1] = 1.0
    found = WAYS[way](experts, hidden, chosen, weights)
    assert found[2].any() and not found[[0, 1, 3, 4, 5]].any()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 5),
    chosen=st.lists(st.integers(0, 119), min_size=1, max_size=120, unique=True),
    crowded=st.booleans(),
    extra=st.integers(0, 2),
)
@torch.inference_mode()
def test_a_rows_bits_do_not_depend_on_the_others(
    experts: Any, seed: int, chosen: list[int], crowded: bool, extra: int
) -> None:
    """Any subset of rows in any order, experts with 1 to 120 rows, and empty slots beside the row's own."""
    hidden, ids, weights = routed(120, seed)
    if crowded:
        ids[:, 0] = 0
        ids[:, 1:] = ids[:, 1:].clamp_min(1)
    whole = per_expert_exact(experts, hidden, ids, weights)
    rows = torch.tensor(chosen)
    more = ids[rows][:, :1].expand(-1, extra)
    part = per_expert_exact(
        experts,
        hidden[rows],
        torch.cat([ids[rows], more], 1),
        torch.cat([weights[rows], torch.zeros(len(rows), extra)], 1),
    )
    assert torch.equal(part, whole[rows])
