"""Load a model by name, path, hub id or configuration; the bundled one needs no network."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lynx_exp.models.placement import DeviceMap, placement, refuse_offloading
from lynx_exp.routing.calibration import FILE_NAME

BUNDLED = {"lynx_tiny": Path(__file__).parent / "lynx_tiny"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_device(device: str) -> torch.device:
    """`auto` is the first GPU, or the CPU. ValueError for a device that torch does not know or see."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={device}: not usable here ({str(error).splitlines()[0]}); use auto, cpu or cuda"
        ) from error
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is fp32 on a CPU, where it is fastest and repeats exactly, and bf16 elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: must be one of auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def locate(model: str) -> str:
    """The folder of a bundled model, else `model` itself (a path or hub id). ValueError for a path that does not
    exist."""
    if model in BUNDLED:
        return str(BUNDLED[model])
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    path = Path(model).expanduser()
    if looks_like_path and not path.is_dir():
        raise ValueError(
            f"model={model}: no such folder; give a folder in save_pretrained form, a hub id, or {', '.join(BUNDLED)}"
        )
    return str(path) if path.is_dir() else model


def calibration_path(model: str) -> Path:
    """Where `lynx-prepare calibrate` writes the calibration of `model` by default: below the working directory."""
    where = locate(model)
    name = os.path.relpath(where) if model not in BUNDLED and Path(where).is_dir() else model
    return Path("calibrations") / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name).strip('._')}.safetensors"


def find_calibration(model: str) -> str | None:
    """The file of `calibration=auto`: in the model's folder, else where `lynx-prepare calibrate` writes it; None if
    there is neither."""
    candidates = (Path(locate(model)) / FILE_NAME, calibration_path(model))
    return next((str(path) for path in candidates if path.is_file()), None)


def load_model(
    model: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None = None,
    experts_implementation: str | None = None,
    trust_remote_code: bool = False,
    device_map: DeviceMap | None = None,
    parallel: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model in eval mode, tokenizer). ValueError, in one line, if it cannot be found, or not be spread as asked.

    `device_map`: as transformers takes it, instead of `device`. `parallel`: tp or ep, over the ranks of torchrun.
    """
    where = locate(model)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **common)
        spread = {}
        if device_map is not None or parallel is not None:
            config = AutoConfig.from_pretrained(where, **common)
            spread = placement(config, device=device, device_map=device_map, parallel=parallel)
        loaded = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            attn_implementation="sdpa",
            experts_implementation=experts_implementation,
            **spread,
            **common,
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model={model}: cannot be loaded: {reason}") from error
    refuse_offloading(device_map, getattr(loaded, "hf_device_map", None) or {})
    return (loaded if spread else loaded.to(device)).eval(), tokenizer


def random_model(
    model_type: str,
    config: dict[str, Any],
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    experts_implementation: str | None = None,
) -> PreTrainedModel:
    """A model of any transformers architecture with random weights, for latency work and tests."""
    try:
        resolved = AutoConfig.for_model(model_type, **config)
    except ValueError as error:
        raise ValueError(f"model.config.model_type={model_type}: unknown to the installed transformers") from error
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(
        resolved, dtype=dtype, attn_implementation="sdpa", experts_implementation=experts_implementation
    )
    return built.to(device).eval()
