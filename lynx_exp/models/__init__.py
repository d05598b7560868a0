"""Routers of any transformers MoE, and policies on them. torch and transformers only.

Each name is imported when it is first asked for: most modules bring transformers, which takes seconds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lynx_exp.models.attach import Attachment, Record, Rows, bind, count_active, count_changed
    from lynx_exp.models.fuse import fuse
    from lynx_exp.models.load_model import load_tokenizer, load_weights, random_model
    from lynx_exp.models.placement import DeviceMap
    from lynx_exp.models.places import (
        BUNDLED,
        calibration_path,
        find_calibration,
        locate,
        resolve_device,
        resolve_dtype,
    )
    from lynx_exp.models.probe import RouterOutputs, UnknownRouter
    from lynx_exp.models.prove import Live, LiveRule, prove_outputs
    from lynx_exp.models.rank_agreement import from_first, group_of
    from lynx_exp.models.routers import Described, Router, UnsupportedModel, find_routers, fingerprint, intercepted

_MODULES = {
    "attach": (
        "Attachment",
        "Record",
        "Rows",
        "bind",
        "count_active",
        "count_changed",
    ),
    "fuse": ("fuse",),
    "load_model": (
        "load_tokenizer",
        "load_weights",
        "random_model",
    ),
    "placement": ("DeviceMap",),
    "places": (
        "BUNDLED",
        "calibration_path",
        "find_calibration",
        "locate",
        "resolve_device",
        "resolve_dtype",
    ),
    "probe": (
        "RouterOutputs",
        "UnknownRouter",
    ),
    "prove": (
        "Live",
        "LiveRule",
        "prove_outputs",
    ),
    "rank_agreement": (
        "from_first",
        "group_of",
    ),
    "routers": (
        "Described",
        "Router",
        "UnsupportedModel",
        "find_routers",
        "fingerprint",
        "intercepted",
    ),
}
"""Which names each module has."""

__all__ = [
    "BUNDLED",
    "RouterOutputs",
    "Attachment",
    "Described",
    "DeviceMap",
    "Live",
    "LiveRule",
    "Router",
    "Record",
    "Rows",
    "UnknownRouter",
    "UnsupportedModel",
    "bind",
    "calibration_path",
    "count_active",
    "count_changed",
    "find_calibration",
    "find_routers",
    "fingerprint",
    "from_first",
    "fuse",
    "group_of",
    "intercepted",
    "load_tokenizer",
    "load_weights",
    "locate",
    "prove_outputs",
    "random_model",
    "resolve_device",
    "resolve_dtype",
]


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
