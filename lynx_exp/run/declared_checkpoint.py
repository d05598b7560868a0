"""What a preset says of its checkpoint's own files (`model.checkpoint`), held against those that are here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lynx_exp.config import CheckpointConfig

QUANTIZATIONS = {"mxfp4": "mxfp4", "fp8": "float8"}
"""`quant_method` of a config.json: what `model.checkpoint.storage` calls it."""


def checkpoint_mismatch(declared: CheckpointConfig, folder: Path, context: int | None, name: str) -> str | None:
    """What the files of `folder` say otherwise, each with its file, in one line; None if nothing. A file that is not
    there, or cannot be read, says nothing. `context`: positions by config.json."""
    found = list(_differences(declared, folder, context))
    if not found:
        return None
    said = ", ".join(found)
    return f"model.checkpoint of {name} is not what its files say, which are taken: {said}; correct the preset"


def _differences(declared: CheckpointConfig, folder: Path, context: int | None) -> Iterator[str]:
    sampling = _sampling(_read(folder / "generation_config.json")) if declared.generation else {}
    for key, value in declared.generation.items() if sampling else ():
        if sampling.get(key) != value:
            yield f"generation.{key}={value:g} (generation_config.json: {sampling.get(key)})"
    if declared.context is not None and context is not None and declared.context > context:
        yield f"context={declared.context} (config.json: {context} positions)"
    config = _read(folder / "config.json")
    stored = storage_in(config)
    if config and declared.storage != stored:
        yield f"storage={_shown(declared.storage)} (config.json: {_shown(stored)})"
    if (folder / "tokenizer_config.json").is_file():
        yield from _of_template(declared, template_in(folder))


def _of_template(declared: CheckpointConfig, template: str) -> Iterator[str]:
    there = "required" if template else "none"
    if declared.template is not None and declared.template != there:
        yield f"template={declared.template} (tokenizer: {'a' if template else 'no'} chat template)"
    elif declared.thinking == "flag" and not re.search(rf"\b{declared.flag}\b", template):
        yield f"thinking=flag (chat template: no {declared.flag})"
    elif declared.thinking == "effort" and "reasoning_effort" not in template:
        yield "thinking=effort (chat template: no reasoning_effort)"
    elif declared.thinking in ("none", "always") and (flag := re.search(r"\b(enable_)?thinking\b", template)):
        yield f"thinking={declared.thinking} (chat template: {flag[0]})"


def _sampling(stated: Mapping[str, object]) -> Mapping[str, object]:
    """What counts of a generation_config.json; empty where it says nothing."""
    if not stated or not stated.get("do_sample", False):
        return {"temperature": 0.0} if stated else {}
    return {"temperature": 1.0, "top_p": 1.0} | {key: value for key, value in stated.items() if value is not None}


def template_in(folder: Path) -> str:
    """The chat template beside a tokenizer, in either of the places where transformers keeps it; empty: none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    held = _read(folder / "tokenizer_config.json").get("chat_template")
    return held if isinstance(held, str) else "" if held is None else json.dumps(held)


def storage_in(config: Mapping[str, object]) -> str | None:
    """What a config.json says of how weights are stored, in the words of `model.checkpoint.storage`; another method by
    its own name. None: as they are computed with."""
    method = config.get("quantization_config")
    if not isinstance(method, Mapping):
        return None
    return QUANTIZATIONS.get(name := str(method.get("quant_method")), name)


def _read(path: Path) -> Mapping[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # whoever needs it says what is wrong
        return {}
    return found if isinstance(found, dict) else {}


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
