"""Cells on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lynx_exp.config import Config, ModelConfig, TrackerConfig


def bundled(results: Path, **fields: Any) -> Config:
    """In fp32 on the CPU; vanilla unless `policy` is given."""
    given: dict[str, Any] = {"policy": {"name": "vanilla"}, "dtype": "float32", "device": "cpu"} | fields
    return Config(
        model=ModelConfig(kind="bundled", id="lynx_tiny"), tracker=TrackerConfig(), results=str(results), **given
    )
