"""Fields that nobody asked for: Hydra adds them with `+` or `++` to any schema, where nothing reads them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from lynx_exp.wording import did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

_HYDRAS_OWN = ("hydra", "hydra.env")
"""What Hydra adds by itself."""


def refuse_unknown(composed: DictConfig, prefix: str = "") -> None:
    """ValueError for a key, at any depth, that the dataclass of its node does not have, with the value it was given.

    Nodes without a dataclass are open: a policy's parameters, an architecture's fields and the like, which are checked
    where they are used.
    """
    from omegaconf import DictConfig, OmegaConf

    kind = OmegaConf.get_type(composed)
    known = [field.name for field in fields(kind)] if kind is not None and is_dataclass(kind) else None
    keys: list[Any] = list(composed)
    for key in keys:
        name = f"{prefix}{key}"
        if known is not None and key not in known and name not in _HYDRAS_OWN:
            value = "???" if OmegaConf.is_missing(composed, key) else OmegaConf.to_container(composed)[key]  # type: ignore[index,call-overload]
            names = ", ".join(f"{prefix}{each}" for each in known if not each.startswith("_"))
            raise ValueError(f"{name}={value}: unknown field; known: {names}{did_you_mean(str(key), known)}")
        if OmegaConf.is_missing(composed, key) or OmegaConf.is_interpolation(composed, key):
            continue
        node = composed[key]
        if isinstance(node, DictConfig):
            refuse_unknown(node, f"{name}.")
