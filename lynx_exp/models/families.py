"""Every MoE among the causal language models of the installed transformers, and which of them a policy can serve.

`python -m lynx_exp.models.families` prints what docs/models.md says of them, and of what the engine does with each.
"""

from __future__ import annotations

import re
import runpy
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lynx_exp.models.load_model import load_weights
from lynx_exp.models.routers import Router, UnsupportedModel, find_routers
from lynx_exp.models.tiny import tiny_model

_MOE = re.compile(r'"router_logits":|^class \w*Experts?\(', re.MULTILINE)
_SOURCES = Path(transformers.__file__).parent / "models"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model class, under one or more model types."""

    model: str
    """The class, such as MixtralForCausalLM."""
    model_types: tuple[str, ...]

    def __str__(self) -> str:
        return self.model_types[0]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a family's tiny model, saved and loaded."""

    family: Family
    model: PreTrainedModel
    routers: list[Router]
    """Empty if it is refused."""
    reason: str = ""
    """Why it is refused, as `find_routers` says it."""


def families() -> list[Family]:
    """All MoE families, by model type: those whose source declares router logits or a class of experts.

    Reads the source files only: importing them all takes many times longer.
    """
    types: dict[str, list[str]] = defaultdict(list)
    for model_type, model in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        types[model].append(model_type)
    found = []
    for model, model_types in types.items():
        sources = (_source(model, model_type) for model_type in model_types)
        if any(_MOE.search(source) for source in sources):
            found.append(Family(model=model, model_types=tuple(sorted(model_types))))
    return sorted(found, key=str)


def examine(family: Family) -> Verdict:
    """Save a tiny random model of the family, load it as a run would, and look for its routers."""
    model = reloaded(tiny_model(family.model_types[0]))
    try:
        return Verdict(family=family, model=model, routers=find_routers(model))
    except UnsupportedModel as error:
        return Verdict(family=family, model=model, routers=[], reason=str(error).partition("): ")[2])


def reloaded(model: PreTrainedModel) -> PreTrainedModel:
    """What a run makes of the model's checkpoint: what is listed as supported can be loaded, not only be built."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_weights(folder, dtype=torch.float32, device=torch.device("cpu")).model


def _source(model: str, model_type: str) -> str:
    """The text of the file that defines the class; empty if the model type borrows another one's."""
    folder = _SOURCES / model_type_to_module_name(model_type)
    texts = (path.read_text(encoding="utf-8") for path in folder.glob("modeling_*.py"))
    return next((text for text in texts if f"class {model}(" in text), "")


if __name__ == "__main__":
    runpy.run_module("lynx_exp.engine.abilities", run_name="__main__")  # what can be done with them is the engine's
