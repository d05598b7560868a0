"""Routers of any transformers MoE, and policies on them. torch and transformers only."""

from lynx_exp.models.attach import Attachment, Rows, count_active
from lynx_exp.models.load import BUNDLED, load_model, locate, random_model, resolve_device, resolve_dtype
from lynx_exp.models.routers import Router, UnsupportedModel, find_routers

__all__ = [
    "BUNDLED",
    "Attachment",
    "Router",
    "Rows",
    "UnsupportedModel",
    "count_active",
    "find_routers",
    "load_model",
    "locate",
    "random_model",
    "resolve_device",
    "resolve_dtype",
]
