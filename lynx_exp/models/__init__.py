"""Routers of any transformers MoE, and policies on them. torch and transformers only."""

from lynx_exp.models.attach import Attachment, Rows, bind, count_active
from lynx_exp.models.load import (
    BUNDLED,
    calibration_path,
    find_calibration,
    load_model,
    locate,
    random_model,
    resolve_device,
    resolve_dtype,
)
from lynx_exp.models.placement import DeviceMap
from lynx_exp.models.ranks import from_first
from lynx_exp.models.routers import Router, UnsupportedModel, find_routers, fingerprint

__all__ = [
    "BUNDLED",
    "Attachment",
    "DeviceMap",
    "Router",
    "Rows",
    "UnsupportedModel",
    "bind",
    "calibration_path",
    "count_active",
    "find_calibration",
    "find_routers",
    "fingerprint",
    "from_first",
    "load_model",
    "locate",
    "random_model",
    "resolve_device",
    "resolve_dtype",
]
