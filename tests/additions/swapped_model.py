"""A checkpoint of a family that nobody knows: Mixtral whose routers return (weights, experts, logits)."""

from __future__ import annotations

import json
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

from lynx_exp.models import BUNDLED
from lynx_exp.models.tiny import tiny_config

CODE = """
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, MixtralTopKRouter


class SwappedConfig(MixtralConfig):
    model_type = "swapped"


class SwappedTopKRouter(MixtralTopKRouter):
    def forward(self, hidden_states):
        logits, weights, experts = super().forward(hidden_states)
        return weights, experts, logits


class SwappedBlock(MixtralSparseMoeBlock):
    def __init__(self, config):
        super().__init__(config)
        self.gate = SwappedTopKRouter(config)

    def forward(self, hidden_states):
        shape = hidden_states.shape
        flat = hidden_states.reshape(-1, shape[-1])
        weights, experts, _ = self.gate(flat)
        return self.experts(flat, experts, weights).reshape(shape)


class SwappedForCausalLM(MixtralForCausalLM):
    config_class = SwappedConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = SwappedBlock(config)
        self.post_init()
"""


def write_checkpoint(folder: Path) -> Path:
    """Random weights, and the bundled model's tokenizer."""
    folder.mkdir()
    (folder / "modeling_swapped.py").write_text(CODE)
    spec = spec_from_file_location("modeling_swapped", folder / "modeling_swapped.py")
    assert spec is not None and spec.loader is not None
    code: Any = module_from_spec(spec)
    spec.loader.exec_module(code)
    fields = tiny_config("mixtral", vocab_size=2048, max_position_embeddings=1024).to_dict()
    fields.pop("model_type")
    torch.manual_seed(0)
    code.SwappedForCausalLM(code.SwappedConfig(**fields)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "SwappedConfig", "AutoModelForCausalLM": "SwappedForCausalLM"}
    config["auto_map"] = {auto: f"modeling_swapped.{name}" for auto, name in classes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED["lynx_tiny"] / name, folder / name)
    return folder
