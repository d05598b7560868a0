"""What of a model each device holds: slices and whole experts by transformers' plans, layers nearly as accelerate puts
them. Known from shapes alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lynx_exp.run.cost_estimate import BYTES, GIB, architecture, weightless
from lynx_exp.run.storage import bytes_of_weight, kept_storage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lynx_exp.run.planned_cell import Cell

SHARE = 0.8
"""Of the memory beside the weights that keys and values get, as in the engine."""
_SPLIT = re.compile(r"colwise|rowwise|grouped_gemm")
"""In names of transformers' styles: each rank has its part of the weight."""
_LAYER = re.compile(r"\.(?:layers|blocks)\.(\d+)\.")
"""In names of weights."""
_OWN_HEADS = ("k_proj", "kv_b_proj")
"""Modules whose parts leave each rank the keys and values of its own heads; where their output is gathered it has
all."""


@dataclass(frozen=True)
class Part:
    """What one device holds."""

    weights: float
    """GiB."""
    kept: float
    """Share of a row's keys and values."""

    def rows(self, memory: float, row: float) -> int:
        """That fit beside the weights; `memory` of the device and `row`, one's keys and values, in GiB."""
        need = row * self.kept
        return max(0, math.floor(SHARE * (memory - self.weights) / need)) if need else 2**31


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A way to put a model on devices."""

    how: str
    """none, tp, ep or device_map."""
    devices: int

    @property
    def together(self) -> bool:
        """Whether all devices work at the same time, each on its part of every layer."""
        return self.how in ("tp", "ep")

    @property
    def words(self) -> str:
        """As they are typed."""
        if self.how == "device_map":
            return f"hardware.devices={self.devices} with model.device_map=auto"
        return f"hardware.devices={self.devices} with model.parallel={self.how}, under torchrun"


def spread_of(cell: Cell) -> Spread:
    """As the cell asks."""
    model, devices = cell.config.model, cell.config.hardware.devices
    if model.parallel is not None:
        return Spread(how=model.parallel, devices=devices)
    if model.device_map is not None:
        return Spread(how="device_map", devices=devices)
    return Spread(how="none", devices=1)


def parts(cell: Cell, dtype: str, spread: Spread, memory: float) -> tuple[Part, ...] | None:
    """Of each device, of `memory` GiB. None where the model cannot be built from its configuration.

    ValueError for a way in which it cannot be spread.
    """
    how = cell.config.model.device_map if spread.how == "device_map" else None
    asked = tuple(sorted(how.items())) if isinstance(how, Mapping) else None
    storage = kept_storage(cell, cell.config.hardware.device)
    return _parts(*architecture(cell), BYTES.get(dtype, 4), storage, spread, asked, memory)


@cache
def _parts(
    kind: str,
    name: str,
    revision: str | None,
    trust: bool,
    fields: str,
    width: int,
    storage: str | None,
    spread: Spread,
    asked: tuple[tuple[str, int | str], ...] | None,
    memory: float,
) -> tuple[Part, ...] | None:
    model = weightless(kind, name, revision, trust, fields)
    if model is None:
        return None
    sizes = {
        parameter: bytes_of_weight(parameter, weight, width, storage) / GIB
        for parameter, weight in model.named_parameters()
    }
    if spread.how == "none":
        return (Part(sum(sizes.values()), 1.0),)
    if spread.together:
        return (_of_each_rank(model, sizes, spread),) * spread.devices
    places = dict(asked) if asked is not None else _places(sizes, spread.devices, memory)
    return tuple(_of_layers(sizes, places, model.config.get_text_config().num_hidden_layers))


def _of_each_rank(model: PreTrainedModel, sizes: Mapping[str, float], spread: Spread) -> Part:
    from lynx_exp.models.placement import refusal

    reason = refusal(model.config, spread.how, spread.devices)
    if reason is not None:
        raise ValueError(reason)
    plan: Mapping[str, str] = (model._tp_plan if spread.how == "tp" else model._ep_plan) or {}
    patterns = [
        (re.compile(re.escape(module).replace(r"\*", r"\d+") + r"(\.(weight|bias))?$"), style)
        for module, style in plan.items()
    ]
    total = 0.0
    for name, size in sizes.items():
        style = next((style for pattern, style in patterns if pattern.search(name)), "")
        total += size / spread.devices if _SPLIT.search(style) else size
    own = any(module.endswith(_OWN_HEADS) and style == "colwise" for module, style in plan.items())
    return Part(total, 1 / spread.devices if own else 1.0)


def _places(sizes: Mapping[str, float], devices: int, memory: float) -> Mapping[str, int | str]:
    """Module: device, nearly as `device_map=auto` puts them: in order, each device but the last up to its equal share
    and a layer more. accelerate itself tells only of devices that are here."""
    blocks: dict[str, float] = {}
    for name, size in sizes.items():
        layer = _LAYER.search(name)
        block = name[: layer.end() - 1] if layer is not None else name
        blocks[block] = blocks.get(block, 0.0) + size
    share = sum(blocks.values()) / devices + 1.25 * max(blocks.values())
    places: dict[str, int | str] = {}
    device, held = 0, 0.0
    for block, size in blocks.items():
        while device < devices and held + size > (memory if device == devices - 1 else min(share, memory)):
            device, held = device + 1, 0.0
        places[block] = device if device < devices else "cpu"
        held += size
    return places


def _of_layers(sizes: Mapping[str, float], places: Mapping[str, int | str], layers: int) -> Iterator[Part]:
    """ValueError where some of it is on no GPU."""
    held: dict[int | str, float] = {}
    own: dict[int | str, set[str]] = {}
    for name, size in sizes.items():
        place = next(
            (
                device
                for module, device in places.items()
                if module == "" or name == module or name.startswith(f"{module}.")
            ),
            "nowhere",
        )
        held[place] = held.get(place, 0.0) + size
        layer = _LAYER.search(name)
        if layer is not None:
            own.setdefault(place, set()).add(layer[1])
    off = {"cpu", "disk", "nowhere"} & held.keys()
    if off:
        raise ValueError(f"{held[sorted(off)[0]]:.1f} GiB of its weights are on no device")
    for place in sorted(held, key=str):
        yield Part(held[place], len(own.get(place, ())) / max(1, layers))


def rows_that_fit(found: Sequence[Part], memory: float, row: float) -> int:
    """On the fullest device."""
    return min(part.rows(memory, row) for part in found)
