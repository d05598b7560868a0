"""Every MoE among the causal language models of the installed transformers, and which of them a policy can serve.

`python -m lynx_exp.models.families` prints what the README says of them.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from lynx_exp.models.load import load_weights
from lynx_exp.models.routers import Router, UnsupportedModel, find_routers
from lynx_exp.models.tiny import tiny_model

NOT_DECODED = {"minimax": "keeps a cache of its own"}
"""Families that policies serve, but that `lynx_exp.engine` does not decode."""

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


def markdown(verdicts: Iterable[Verdict]) -> str:
    """The table of the README: families by what their routers do, then those refused, with the reason."""
    served: dict[str, list[Family]] = defaultdict(list)
    refused: dict[str, list[Family]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.routers:
            served[_rule(verdict.routers[0])].append(verdict.family)
        else:
            refused[verdict.reason].append(verdict.family)
    passed, failed = (sum(map(len, groups.values())) for groups in (served, refused))
    return "\n".join(
        [
            f"transformers {transformers.__version__} has {passed + failed} MoE families among its causal language "
            f"models: {passed} supported, {failed} refused.",
            "",
            "| its routers choose by | `model_type` |",
            "| --- | --- |",
            *(f"| {rule} | {_names(served[rule])} |" for rule in sorted(served)),
            "",
            "| refused | why |",
            "| --- | --- |",
            *(
                f"| {_names(families)} | {reason} |"
                for reason, families in sorted(refused.items(), key=lambda item: str(item[1][0]))
            ),
            "",
            *(
                f"`{name}` {reason}: policies serve it, `Engine` does not decode it."
                for name, reason in NOT_DECODED.items()
            ),
        ]
    )


def _source(model: str, model_type: str) -> str:
    """The text of the file that defines the class; empty if the model type borrows another one's."""
    folder = _SOURCES / model_type_to_module_name(model_type)
    texts = (path.read_text(encoding="utf-8") for path in folder.glob("modeling_*.py"))
    return next((text for text in texts if f"class {model}(" in text), "")


def _rule(router: Router) -> str:
    rule = router.rule
    text = {"sqrtsoftplus": "square root of softplus"}.get(rule.score, rule.score)
    if rule.bias is not None:
        text += " + bias" if rule.bias_on == "scores" else "; bias on the logits"
    if rule.grouped:
        text += f", in groups ranked by their {'best score' if rule.group_score == 'max' else 'two best'}"
    return text if rule.expert_scale is None else f"{text}; weights scaled by expert"


def _names(families: Iterable[Family]) -> str:
    return ", ".join("/".join(f"`{name}`" for name in family.model_types) for family in families)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # of architectures that miss their fast kernels
    disable_progress_bar()
    print(markdown(map(examine, families())))
