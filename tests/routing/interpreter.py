"""Triton's interpreter cuts float32 off where it makes bfloat16 of it; every GPU rounds to the nearest, ties to even.
A logit gap that lies between two of its values then falls into another bin of `lynx`. Here the interpreter rounds."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch


def round_as_hardware() -> None:
    """For this process. Nothing where Triton is not installed."""
    if find_spec("triton") is None:
        return
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if (source, target) != (float32, bfloat16):
            return convert(values, source, target, mode)
        exact = torch.from_numpy(np.ascontiguousarray(values).view(np.float32))
        return exact.bfloat16().view(torch.int16).numpy().view(np.uint16)

    interpreter._convert_float = rounded
