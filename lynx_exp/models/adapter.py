"""Adapters of PEFT, merged into the weights: the model is then one of its family, and proved and run as such."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from lynx_exp.models.checkpoint import one_line


def check_adapter(adapter: str) -> Path:
    """The folder of an adapter. ValueError, in one line and before any weight is read, for what is none, and where peft
    is not installed."""
    from importlib.util import find_spec

    folder = Path(adapter).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"model.adapter={adapter}: no adapter_config.json there; give a folder as PEFT's save_pretrained writes it"
        )
    try:
        kind = json.loads((folder / "adapter_config.json").read_bytes())["peft_type"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"model.adapter={adapter}: its adapter_config.json names no peft_type") from error
    if find_spec("peft") is None:
        raise ValueError(f"model.adapter={adapter}: {kind} needs peft; pip install 'lynx-exp[adapters]'")
    return folder


def merged(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with the adapter in its weights. ValueError, in one line, if it does not fit, or cannot be merged."""
    folder = check_adapter(adapter)
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of peft's use of transformers
            with_adapter = PeftModel.from_pretrained(model, str(folder))
            plain = with_adapter.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    except Exception as error:  # every kind of adapter fails in its own way
        raise ValueError(f"model.adapter={adapter}: does not merge: {one_line(error)}") from error
    return cast(PreTrainedModel, plain)
