"""Spreads a model over several devices, by the device maps and parallel plans of transformers."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.utils import is_accelerate_available

DeviceMap = str | Mapping[str, int | str]

PARALLEL = {"tp": "base_model_tp_plan", "ep": "base_model_ep_plan"}
"""The attribute of a transformers configuration that has the plan for each kind of parallelism."""

OLDEST_EP = (5, 20)
"""First version of transformers whose expert-parallel routers work with policies. Routers of 5.17 and 5.18 return the
expert numbers of their own rank, and those of 5.19 cannot be read."""


def placement(
    config: PreTrainedConfig, *, device: torch.device, device_map: DeviceMap | None, parallel: str | None
) -> dict[str, object]:
    """The arguments of `from_pretrained` that spread a model over devices.

    Args:
        config: The model's configuration.
        device: The device that was chosen for this process.
        device_map: Placement of layers on the GPUs of this process, as transformers takes it.
        parallel: tp gives each rank a slice of every matrix of the plan; ep does so too, but keeps experts whole.

    Returns:
        Keyword arguments; empty for a model on one device.

    Raises:
        ValueError: The model, the machine or the installation does not support it. No weight has been read yet.
    """
    if device_map is None and parallel is None:
        return {}
    setting = f"parallel={parallel}" if device_map is None else f"device_map={device_map}"
    if device_map is not None and parallel is not None:
        raise ValueError(f"{setting}, parallel={parallel}: one place for each weight; give one of the two")
    if not is_accelerate_available():
        raise ValueError(f"{setting}: needs accelerate; pip install 'lynx-exp[multi]'")
    if device_map is not None:
        return {"device_map": device_map if isinstance(device_map, str) else dict(device_map)}
    if parallel not in PARALLEL:
        raise ValueError(f"{setting}: must be one of {', '.join(PARALLEL)}, or None")
    if "WORLD_SIZE" not in os.environ:
        raise ValueError(f"{setting}: start it with `torchrun --nproc-per-node GPUS ...`; this is a single process")
    accelerator = torch.accelerator.current_accelerator()
    available = accelerator.type if accelerator is not None else "cpu"
    if device.type != available:
        raise ValueError(
            f"{setting}: transformers spreads a model over {available} devices here, not device={device.type}"
        )
    reason = refusal(config, parallel, int(os.environ["WORLD_SIZE"]))
    if reason is not None:
        raise ValueError(f"{setting}: {reason}; use device_map=auto")
    if parallel == "ep" and _version() < OLDEST_EP:
        raise ValueError(f"{setting}: needs transformers {'.'.join(map(str, OLDEST_EP))} or newer; use parallel=tp")
    from transformers.distributed import DistributedConfig

    ranks = int(os.environ["WORLD_SIZE"])
    more = {"ep_size": ranks} if parallel == "ep" else {}
    return {"distributed_config": DistributedConfig(tp_size=ranks, tp_plan="auto", **more)}


def refusal(config: PreTrainedConfig, how: str, ranks: int) -> str | None:
    """Why a model of this (transformers) configuration cannot be spread over so many ranks; None: it can."""
    text = config.get_text_config()
    plan = getattr(text, PARALLEL[how], None) or {}
    if not any("expert" in module for module in plan):
        return f"transformers has no {how} plan for the experts of {config.model_type}"
    heads = getattr(text, "num_key_value_heads", None)
    own = any(module.endswith(".k_proj") and style == "colwise" for module, style in plan.items())
    if own and heads and heads % ranks:
        return f"its {heads} key-value heads are not a multiple of {ranks} ranks"
    experts = next(
        (n for f in ("num_local_experts", "num_experts", "n_routed_experts") if (n := getattr(text, f, 0))), 0
    )
    if how == "ep" and experts % ranks:
        return f"its {experts} experts are not a multiple of {ranks} ranks"
    return None


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in transformers.__version__.split(".")[:2])


def refuse_offloading(device_map: DeviceMap | None, places: Mapping[str, object]) -> None:
    """ValueError if some of the model is kept off the devices that run it: every step would fetch it again."""
    kept = sorted({str(place) for place in places.values()} & {"cpu", "disk"})
    if kept and len(set(places.values())) > 1:
        raise ValueError(
            f"device_map={device_map}: the model does not fit on the devices, {' and '.join(kept)} would hold the "
            "rest; give more or larger ones"
        )
