"""Engines of models that are loaded or built: `Engine.from_pretrained` and `Engine.from_config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, TypeVar

import torch

from lynx_exp.engine.decoding.loaded import LoadedModel
from lynx_exp.engine.decoding.steps import StepsMode
from lynx_exp.models import (
    DeviceMap,
    find_calibration,
    load_tokenizer,
    load_weights,
    random_model,
    resolve_device,
    resolve_dtype,
)
from lynx_exp.models.expert_kernels import FEW_ROWS, device_refusal, require
from lynx_exp.models.experts import PER_EXPERT_EXACT


class OpenedModel(LoadedModel):
    """A loaded model that is made from the name of a checkpoint, or from a configuration."""

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        experts_implementation: str = "auto",
        trust_remote_code: bool = False,
        allow_partial: bool = False,
        device_map: DeviceMap | None = None,
        parallel: str | None = None,
        adapter: str | None = None,
        max_rows: int = 256,
        memory_gib: float | None = None,
        steps: StepsMode = "auto",
    ) -> Self:
        """Load a model with its tokenizer.

        Args:
            model: `lynx_tiny` (bundled), a folder in `save_pretrained` form, or a hub id.
            dtype: A torch dtype by name; auto is float32 on a CPU and bfloat16 elsewhere.
            device: A torch device by name; auto is the first GPU, or the CPU.
            revision: Branch, tag or commit of a hub id.
            experts_implementation: How experts are computed, by transformers' names or those of this package; auto
                is this package's exact way on a CPU, and on a GPU what is fastest there when it is timed.
            trust_remote_code: Run code that a hub repository brings along.
            allow_partial: Load although weights are missing, or have no place in the model; `Engine.partial` then says
                which.
            device_map: Layers over the GPUs of this process, as transformers takes it.
            parallel: tp or ep, over the ranks of torchrun, which must then all make the same calls.
            adapter: Folder of a PEFT adapter, which is merged into the weights.
            max_rows: Rows of a physical batch at most, unless a lane is wider. Changes speed, never tokens.
            memory_gib: For keys and values; None is half of a CPU's available memory, or 80 % of what a GPU has free.
            steps: auto, captured (as CUDA graphs) or eager.

        Returns:
            The engine, on its device.

        Raises:
            ValueError: The model cannot be loaded, or has no routers of a known form; the message is one line.
        """
        where = resolve_device(device)
        tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust_remote_code)
        loaded, partial = load_weights(
            model,
            dtype=resolve_dtype(dtype, where),
            device=where,
            revision=revision,
            experts_implementation=_experts(experts_implementation, where),
            trust_remote_code=trust_remote_code,
            allow_partial=allow_partial,
            device_map=device_map,
            parallel=parallel,
            adapter=adapter,
        )
        engine = cls(loaded, tokenizer, max_rows=max_rows, memory_gib=memory_gib, steps=steps)
        engine.partial = partial
        engine.calibration = find_calibration(model)
        return _with_experts(engine, experts_implementation)

    @classmethod
    def from_config(
        cls,
        model_type: str,
        config: Mapping[str, object],
        *,
        seed: int = 0,
        dtype: str = "auto",
        device: str = "auto",
        experts_implementation: str = "auto",
        max_rows: int = 256,
        memory_gib: float | None = None,
        steps: StepsMode = "auto",
    ) -> Self:
        """A model of any transformers architecture with random weights and no tokenizer: prompts are token ids.

        Args:
            model_type: As in transformers' config.json, such as mixtral.
            config: Fields of its configuration that differ from the defaults.
            seed: Of the weights.
            dtype: As for `from_pretrained`.
            device: As for `from_pretrained`.
            experts_implementation: As for `from_pretrained`.
            max_rows: As for `from_pretrained`.
            memory_gib: As for `from_pretrained`.
            steps: As for `from_pretrained`.

        Returns:
            The engine, on its device.

        Raises:
            ValueError: The architecture is unknown, or has no routers of a known form.
        """
        where = resolve_device(device)
        built = random_model(
            model_type,
            dict(config),
            seed=seed,
            dtype=resolve_dtype(dtype, where),
            device=where,
            experts_implementation=_experts(experts_implementation, where),
        )
        engine = cls(built, None, max_rows=max_rows, memory_gib=memory_gib, steps=steps)
        return _with_experts(engine, experts_implementation)


Opened = TypeVar("Opened", bound=OpenedModel)


def _with_experts(engine: Opened, name: str) -> Opened:
    """ValueError if its experts cannot be computed as they were asked to be."""
    engine.auto_experts = name == "auto"
    if name == FEW_ROWS:
        require(engine.model, 1, engine.top_k)
    return engine


def _experts(name: str, device: torch.device) -> str | None:
    """How experts are computed. `auto`: `lynx_exp.models.experts` on a CPU, else transformers' choice. ValueError if
    the device cannot."""
    if name == FEW_ROWS and (why := device_refusal(device)) is not None:
        raise ValueError(f"experts_implementation={FEW_ROWS}: {why}")
    if name == "auto":
        return PER_EXPERT_EXACT if device.type == "cpu" else None
    return name
