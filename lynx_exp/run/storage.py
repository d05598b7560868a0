"""What quantised weights take: as a checkpoint is published, and where it stays so when it is loaded.

Through transformers a card computes with FP8 and MXFP4 weights as they are stored, if it has kernels for them (for
MXFP4 the package `kernels`); without, and on a CPU, they become the cell's dtype as they load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from lynx_exp.run.planned_cell import Cell

BYTES_PER_WEIGHT: Mapping[str, float] = {"mxfp4": 4.25 / 8, "float8": 1 + 4 / 128**2}
"""By `model.checkpoint.storage`. MXFP4: 4 bits, and a byte for each 32 (OCP's microscaling formats); FP8: a byte, and
an fp32 scale for each 128 x 128 (DeepSeek-V3's)."""
_WHOLE = ("embed", "lm_head", "wte", ".gate.", "router", "norm")
"""In names of matrices that FP8 checkpoints leave as they were."""


@dataclass(frozen=True)
class Share:
    """Of the bytes that they would have in the cell's dtype."""

    expert: float = 1.0
    """Routed experts."""
    other: float = 1.0
    """All else that a decode step reads."""


def kept_storage(cell: Cell, device: str) -> str | None:
    """How its experts lie in the memory of such a device; None: in the cell's dtype."""
    storage = cell.model.storage
    native = device == "cuda" or cell.config.backend == "vllm"
    return storage if native and storage in BYTES_PER_WEIGHT else None


def bytes_of_weight(name: str, weight: Tensor, width: int, storage: str | None) -> float:
    """Of one parameter of a model whose dtype has `width` bytes."""
    if storage is None or not _is_stored(name, weight, storage):
        return float(weight.numel() * width)
    return weight.numel() * BYTES_PER_WEIGHT[storage]


def _is_stored(name: str, weight: Tensor, storage: str) -> bool:
    if name.endswith("bias") or weight.dim() < 2:
        return False
    return _is_expert(name) or (storage == "float8" and not any(part in name for part in _WHOLE))


def _is_expert(name: str) -> bool:
    return ".experts." in name


def shares(weights: Mapping[str, Tensor], width: int, storage: str | None) -> Share:
    """Of a model's named parameters."""
    if storage is None:
        return Share()
    plain, held = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    for name, weight in weights.items():
        if "embed" in name:
            continue  # of which a step reads a row
        expert = _is_expert(name)
        plain[expert] += weight.numel() * width
        held[expert] += bytes_of_weight(name, weight, width, storage)
    return Share(*(held[expert] / plain[expert] if plain[expert] else 1.0 for expert in (True, False)))
