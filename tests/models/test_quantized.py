"""Quantised checkpoints, on a CPU with nothing but torch and transformers: what loads is its dequantised self, with
routers proved as ever; what needs a package that is not here is refused by name."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lynx_exp.engine import Engine
from lynx_exp.models import find_routers, load_weights
from lynx_exp.models.tiny import tiny_model
from lynx_exp.routing import build_policy

CPU = torch.device("cpu")
BLOCK = 16
PROJECTIONS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
EXPERTS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(float8 values, one scale a block, what they stand for)"""
    rows, columns = weight.shape
    blocks = weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scale = blocks.abs().amax((1, 3), keepdim=True) / 448
    values = (blocks / scale).to(torch.float8_e4m3fn)
    back = (values.float() * scale).view(rows, columns)
    return values.view(rows, columns), scale[:, 0, :, 0].contiguous(), back


def logits(folder: Path) -> torch.Tensor:
    loaded, partial = load_weights(str(folder), dtype=torch.float32, device=CPU)
    assert partial is None and len(find_routers(loaded)) == loaded.config.num_hidden_layers
    with torch.no_grad():
        found: torch.Tensor = loaded(torch.tensor([[1, 2, 3, 4]])).logits
    return found


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_float8_blocks_load_as_what_they_stand_for(family: str, tmp_path: Path) -> None:
    """The form of DeepSeek-V3's and Qwen3's own FP8 checkpoints."""
    plain, small = tmp_path / "plain", tmp_path / "fp8"
    for folder in (plain, small):
        tiny_model(family).save_pretrained(folder)
    tensors = load_file(plain / "model.safetensors")
    values, meant = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        if name.endswith((*PROJECTIONS, *EXPERTS)) and not any(size % BLOCK for size in weight.shape):
            values[name], values[f"{name}_scale_inv"], meant[name] = quantized(weight)
    assert len(values) > len(tensors), "some were"
    save_file(values, small / "model.safetensors", metadata={"format": "pt"})
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((small / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    (small / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(logits(small), logits(plain), rtol=1e-4, atol=1e-5)


FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""What the lower three bits of an FP4 number stand for (OCP's microscaling formats, E2M1); the fourth is its sign."""
GROUP = 32
"""Numbers of MXFP4 that share a scale, a power of two."""


def packed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(two numbers a byte [E, N, G, 16], exponents + 127 [E, N, G], what they stand for [E, M, N]) of a weight
    [E, M, N] of gpt-oss, whose groups of 32 run along M."""
    rows = weight.transpose(1, 2).contiguous()
    groups = rows.view(*rows.shape[:2], -1, GROUP)
    exponent = (groups.abs().amax(-1, keepdim=True) / 6).log2().ceil().clamp(-120, 120)
    scaled = groups / 2**exponent
    nearest = (scaled.abs()[..., None] - FP4).abs().argmin(-1)
    code = (nearest + 8 * (scaled < 0)).to(torch.uint8)
    blocks = code[..., 0::2] | code[..., 1::2] << 4
    back = (FP4[nearest] * scaled.sign() * 2**exponent).view(rows.shape)
    return blocks, (exponent[..., 0] + 127).to(torch.uint8), back.transpose(1, 2).contiguous()


@pytest.fixture
def gpt_oss(tmp_path: Path) -> tuple[Path, Path]:
    """(experts in MXFP4, as gpt-oss is published; the same checkpoint with what they stand for)"""
    small, plain = tmp_path / "mxfp4", tmp_path / "plain"
    for folder in (plain, small):
        tiny_model("gpt_oss").save_pretrained(folder)
    tensors = load_file(plain / "model.safetensors")
    values, meant = dict(tensors), dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        del values[name]
        values[f"{name}_blocks"], values[f"{name}_scales"], meant[name] = packed(tensors[name])
    assert len(values) == len(tensors) + 4, "two projections of two layers"
    save_file(values, small / "model.safetensors", metadata={"format": "pt"})
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((small / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    }
    (small / "config.json").write_text(json.dumps(config))
    return small, plain


def test_mxfp4_experts_load_as_what_they_stand_for(gpt_oss: tuple[Path, Path]) -> None:
    small, plain = gpt_oss
    torch.testing.assert_close(logits(small), logits(plain), rtol=0, atol=0)


def test_mxfp4_experts_run_vanilla_and_lynx(gpt_oss: tuple[Path, Path]) -> None:
    lynx, prompts = build_policy("lynx", alpha=1.0, beta=1), [[5, 6, 7], [8, 9, 10, 11], [13], [20, 21]]
    found = []
    for folder in gpt_oss:
        model, _ = load_weights(str(folder), dtype=torch.float32, device=CPU)
        engine = Engine(model)
        assert [router.num_experts for router in engine.routers] == [8, 8]
        for policy in (None, lynx):
            run = engine.generate(prompts, batch_size=4, max_new_tokens=6, policy=policy, ignore_eos=True)
            found.append((run.token_ids, run.active_experts))
    vanilla, under, *plain = found
    assert [vanilla, under] == plain
    assert sum(row.active_experts for row in under[1]) < sum(row.active_experts for row in vanilla[1])


PACKAGES = {
    "bitsandbytes": ("bitsandbytes", {"load_in_8bit": True}),
    "gptq": ("gptqmodel", {"bits": 4}),
    "awq": ("gptqmodel", {"bits": 4}),
    "compressed-tensors": ("compressed_tensors", {"format": "int-quantized"}),
}


@pytest.mark.parametrize("method", PACKAGES)
def test_what_is_not_here_is_refused_by_name(method: str, tmp_path: Path) -> None:
    package, fields = PACKAGES[method]
    if find_spec(package) is not None:
        pytest.skip(f"{package} is here")
    tiny_model("mixtral").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"is quantised by {method}, which does not load here: ") as refused:
        load_weights(str(tmp_path), dtype=torch.float32, device=CPU)
    assert "\n" not in str(refused.value)
