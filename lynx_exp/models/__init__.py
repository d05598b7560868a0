"""Routers of any transformers MoE, and policies on them. torch and transformers only."""

from lynx_exp.models.attach import Attachment, Record, Rows, bind, count_active, count_changed
from lynx_exp.models.load import (
    BUNDLED,
    calibration_path,
    find_calibration,
    load_tokenizer,
    load_weights,
    locate,
    random_model,
    resolve_device,
    resolve_dtype,
)
from lynx_exp.models.placement import DeviceMap
from lynx_exp.models.probe import Answers, UnknownRouter
from lynx_exp.models.prove import Live, LiveRule, prove_answers
from lynx_exp.models.ranks import from_first
from lynx_exp.models.routers import Described, Router, UnsupportedModel, find_routers, fingerprint, intercepted

__all__ = [
    "BUNDLED",
    "Answers",
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
    "intercepted",
    "load_tokenizer",
    "load_weights",
    "locate",
    "prove_answers",
    "random_model",
    "resolve_device",
    "resolve_dtype",
]
