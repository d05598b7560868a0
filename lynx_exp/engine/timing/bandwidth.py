"""What the hardware gave in decode steps: bytes a second by the bytes model, and their share of a plain copy's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from lynx_exp.engine.timing.copy_rate import copy_rate
from lynx_exp.engine.timing.energy import Meter, meter_of
from lynx_exp.engine.timing.step_bytes import StepBytes, step_bytes
from lynx_exp.models import Router, group_of


@dataclass(frozen=True, kw_only=True)
class BandwidthUse:
    """By one subject, mean over its timed steps."""

    step_gb: float
    """Gigabytes (1e9) of a step by the bytes model."""
    gb_s: float
    """These over the step's time."""
    s_mbu: float
    """`gb_s` over the rate of a plain copy, on all devices that work at once: the sparse memory bandwidth utilisation
    of MoE-CAP (arXiv 2412.07067), with a measured rate in place of the data sheet's. Above 1 where caches serve."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a model's steps are held against."""

    bytes: StepBytes
    copy_gb_s: float
    """Gigabytes a second that the device copies, read and written."""
    devices: int = 1
    """That read at the same time: ranks that share the weights."""

    def bandwidth(self, steps: Iterable[tuple[float, float]]) -> BandwidthUse:
        """`steps`: (bytes, milliseconds) of each. The mean of their rates, as MoE-CAP takes it."""
        listed = list(steps)
        rate = fmean(read / ms / 1e6 for read, ms in listed)
        return BandwidthUse(
            step_gb=fmean(read for read, _ in listed) / 1e9,
            gb_s=rate,
            s_mbu=rate / (self.copy_gb_s * self.devices),
        )


_BYTES: WeakKeyDictionary[PreTrainedModel, StepBytes | None] = WeakKeyDictionary()
"""Of models that were looked at before."""


def hardware_of(model: PreTrainedModel, routers: Sequence[Router]) -> Hardware | None:
    """None where the model's bytes are not known."""
    if model not in _BYTES:
        _BYTES[model] = step_bytes(model, routers)
    read, group = _BYTES[model], group_of(routers)
    if read is None:
        return None
    rate = copy_rate(model.get_input_embeddings().weight.device)
    return Hardware(bytes=read, copy_gb_s=rate, devices=1 if group is None else group.size())


def meter_for(model: PreTrainedModel, routers: Sequence[Router]) -> Meter | None:
    """Of the model's devices; None also where ranks share it, which would have to stop counting together."""
    if group_of(routers) is not None:
        return None
    return meter_of({parameter.device for parameter in model.parameters()})
