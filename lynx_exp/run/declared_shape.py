"""What a preset declares of a model that is not here: its architecture's configuration, as far as it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lynx_exp.config import did_you_mean


def declared_config(shape: Mapping[str, Any]) -> Any:
    """The transformers configuration of `model.shape`. ValueError for one that transformers does not take."""
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = dict(shape)
    kind = fields.pop("model_type")
    if kind not in CONFIG_MAPPING:
        hint = did_you_mean(kind, list(CONFIG_MAPPING))
        raise ValueError(f"model.shape.model_type={kind}: must be a model_type of transformers{hint}")
    try:
        return AutoConfig.for_model(kind, **fields)
    except Exception as error:  # each architecture checks its fields in its own way
        raise ValueError(f"model.shape: {kind} refuses it: {str(error).strip().splitlines()[-1].strip()}") from error


def mismatch(shape: Mapping[str, Any], folder: Path, name: str) -> str | None:
    """What config.json of `folder` says otherwise, in one line; None if nothing, or it is not to be read so."""
    from transformers import AutoConfig

    try:
        whole = AutoConfig.from_pretrained(str(folder))
        real = whole.get_text_config()
    except Exception:  # whoever loads the model says what is wrong
        return None
    found = list(_differences(declared_config(shape), real, shape))
    if shape["model_type"] not in (real.model_type, whole.model_type):
        found.insert(0, f"model_type={shape['model_type']} (there: {real.model_type})")
    if not found:
        return None
    return (
        f"model.shape of {name} is not what its config.json says, which is taken: {', '.join(found)}; "
        "correct the preset, or give another model as model=hub model.id=PATH_OR_HUB_ID"
    )


def _differences(declared: Any, real: Any, shape: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in shape.items():
        if key == "model_type" or not hasattr(declared, key):
            continue
        there = getattr(real, key, None)
        if isinstance(value, Mapping):
            yield from _differences(getattr(declared, key), there, value, f"{key}.")
        elif there != getattr(declared, key):
            yield f"{prefix}{key}={value} (there: {there})"
