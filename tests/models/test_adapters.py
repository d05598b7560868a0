"""PEFT adapters: merged they compute what PEFT computes beside the weights, and routers are proved as ever."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lynx_exp.config import ModelConfig
from lynx_exp.models import find_routers, load_weights
from lynx_exp.models.adapter import check_adapter
from lynx_exp.models.tiny import tiny_model
from lynx_exp.run.model_facts import inspect_model

peft = pytest.importorskip("peft", reason="the extra `adapters`")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """(model, adapter on attention and on the fused experts, logits under PEFT)"""
    folder = tmp_path_factory.mktemp("adapted")
    model = tiny_model("mixtral")
    model.save_pretrained(folder / "model")
    parts = {"target_modules": ["q_proj", "v_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **parts))
        adapted.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return folder / "model", folder / "adapter", adapted.eval()(torch.tensor([[1, 2, 3, 4]])).logits


def logits(model: Path, adapter: Path | None) -> torch.Tensor:
    given = None if adapter is None else str(adapter)
    loaded, partial = load_weights(str(model), dtype=torch.float32, device=CPU, adapter=given)
    assert partial is None and len(find_routers(loaded)) == loaded.config.num_hidden_layers, "each proved"
    with torch.no_grad():
        found: torch.Tensor = loaded(torch.tensor([[1, 2, 3, 4]])).logits
    return found


def test_merged_it_is_what_peft_computes(trained: tuple[Path, Path, torch.Tensor]) -> None:
    model, adapter, wanted = trained
    torch.testing.assert_close(logits(model, adapter), wanted, rtol=1e-4, atol=1e-5)
    assert (logits(model, None) - wanted).abs().max() > 0.01


def test_it_is_another_model(trained: tuple[Path, Path, torch.Tensor]) -> None:
    model, adapter, _ = trained
    plain, with_it = (
        inspect_model(ModelConfig(kind="hub", id=str(model), adapter=given)) for given in (None, str(adapter))
    )
    assert plain.digest != with_it.digest and with_it.name == f"{plain.name} + adapter"


def test_an_adapter_of_another_model_is_refused(trained: tuple[Path, Path, torch.Tensor], tmp_path: Path) -> None:
    model, adapter, _ = trained
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["w_nowhere"]}))
    (tmp_path / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"model\.adapter=.*: does not merge: ") as refused:
        load_weights(str(model), dtype=torch.float32, device=CPU, adapter=str(tmp_path))
    assert "\n" not in str(refused.value)


def test_what_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter_config.json there; give a folder as PEFT's save_pretrained"):
        check_adapter(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="its adapter_config.json names no peft_type"):
        check_adapter(str(tmp_path))


@pytest.mark.parametrize(
    "fields", [{"kind": "random", "id": "mixtral"}, {"kind": "hub", "id": "a/b", "parallel": "tp"}]
)
def test_where_it_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model\.adapter=x: not with model\.(kind=random|parallel=tp); merge it"):
        ModelConfig(adapter="x", **fields)
