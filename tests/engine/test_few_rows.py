"""Engines whose experts are computed by `few_rows`: asked for, and as a candidate that cannot run here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lynx_exp import Engine
from lynx_exp.engine.timing import fastest_experts as fastest
from lynx_exp.models import random_model
from lynx_exp.models.expert_kernels import FEW_ROWS
from lynx_exp.models.expert_kernels import launch_experts as launch
from lynx_exp.models.experts import PER_EXPERT

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
PROMPTS = [[3, 4, 5], [6, 7, 8, 9]]


def small(experts: str, **changes: Any) -> Engine:
    return Engine.from_config("mixtral", SMALL | changes, seed=1, device="cpu", experts_implementation=experts)


@torch.inference_mode()
def test_it_gives_the_logits_of_the_loop_over_experts() -> None:
    asked, ids = small(FEW_ROWS), torch.tensor([PROMPTS[0], PROMPTS[1][:3]])
    assert asked.experts_implementation == FEW_ROWS and not asked.auto_experts
    assert torch.allclose(asked.model(ids).logits, small(PER_EXPERT).model(ids).logits, rtol=0, atol=1e-6)


def test_asked_for_where_it_cannot_run_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="^experts_implementation=few_rows: what MixtralExperts does between its two"):
        small(FEW_ROWS, hidden_act="xielu")
    monkeypatch.setattr(launch, "INTERPRETED", False)
    made = "lynx_exp.engine.decoding.pretrained.random_model"
    monkeypatch.setattr(made, lambda *_, **__: pytest.fail("made in vain"))
    with pytest.raises(
        ValueError, match="^experts_implementation=few_rows: its kernels need a CUDA device, this is cpu$"
    ):
        small(FEW_ROWS)


def test_a_candidate_that_cannot_run_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = small("auto"), []
    monkeypatch.setitem(fastest.CANDIDATES, "cpu", (FEW_ROWS, PER_EXPERT, "grouped_mm"))

    def refusal(_model: Any, rows: int, top_k: int) -> str:
        asked.append((rows, top_k))
        return "no tiles fit"

    monkeypatch.setattr(fastest, "refusal", refusal)
    timing = engine.measure(PROMPTS, batch_size=2, policies={}, new_tokens=2, repeats=2)
    assert set(timing.candidates_ms) == {PER_EXPERT, "grouped_mm"} and asked == [(2, 2)]
    assert engine.experts_note == "experts are not computed as few_rows: no tiles fit"
    monkeypatch.setattr(fastest, "refusal", lambda *_: None)
    assert fastest.stream_experts(engine, 64) == FEW_ROWS
    engine.measure(PROMPTS, batch_size=2, policies={}, new_tokens=2, repeats=2)
    assert engine.experts_note == "experts are not computed as few_rows: no tiles fit", "of these rows, not of 64"


def test_random_weights_are_drawn_on_their_device() -> None:
    """800 GiB of them, nowhere: on a CPU first, this would not end."""
    sizes = {"hidden_size": 8192, "intermediate_size": 2**16, "num_local_experts": 128}
    device = torch.device("meta")
    model = random_model("mixtral", SMALL | sizes, seed=0, dtype=torch.float32, device=device)
    assert {parameter.device for parameter in model.parameters()} == {device}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_seeds_weights_on_a_cpu_are_those_of_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SMALL), dtype=dtype).state_dict()
    made = random_model("mixtral", SMALL, seed=3, dtype=dtype, device=torch.device("cpu")).state_dict()
    assert made.keys() == plain.keys() and all(torch.equal(made[name], plain[name]) for name in plain)
