"""Where models and their calibrations lie, and on what a model runs. Imports no transformers, which takes seconds."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from lynx_exp.routing.calibration import FILE_NAME
from lynx_exp.wording import first_line

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
        raise ValueError(f"device={device}: not usable here ({first_line(error)}); use auto or cpu") from error
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
            f"model.id={model}: no such folder; give a folder in save_pretrained form, a hub id, or "
            f"{', '.join(BUNDLED)}"
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
