"""What a policy with its parameters is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lynx_exp.config.folders import config_folder
from lynx_exp.extensions import extension_file

UNSHOWN = (
    *("min_batch", "seed", "calibration", "bins", "score", "warm_up", "warm_up_for", "utility", "power", "guarantee"),
    *("metric", "first_rank", "weights", "new_weight", "substitute", "oea.p"),
)
"""Policy parameters that a label leaves out where they have the value in conf/policy; one without a value (null) is
always left out."""


def label_policy(
    name: str, parameters: Mapping[str, Any], layers: str | None = None, match_active: float | None = None
) -> str:
    """See `Config.policy_label`."""
    usual = _usual_parameters(name)
    turned = usual.get("knob") if match_active is not None else None
    shown = []
    for key, value in parameters.items():
        secondary = key in UNSHOWN or f"{name}.{key}" in UNSHOWN
        if value is not None and key != turned and not (secondary and usual.get(key) == value):
            stem = Path(value).stem if key == "calibration" and isinstance(value, str) else _short(value)
            shown.append(f"{key}={stem}")
    if match_active is not None:
        shown.append(f"match_active={_short(match_active)}")
    if layers is not None:
        shown.append(f"layers={layers}")
    return f"{name}({', '.join(shown)})" if shown else name


def default_parameters(policy: str) -> dict[str, Any] | None:
    """A policy's parameters as conf/policy has them; None for a policy that it does not have."""
    usual = {key: value for key, value in _usual_parameters(policy).items() if key not in ("match_active", "knob")}
    return {key: value for key, value in usual.items() if key != "name"} if usual else None


@cache
def _usual_parameters(policy: str) -> dict[str, Any]:
    """What conf/policy says of a policy; empty where it has no file. `knob`: the parameter that match_active sets."""
    file = config_folder() / "policy" / f"{policy}.yaml"
    if not file.is_file():
        added = extension_file("conf/policy", f"{policy}.yaml")
        if added is None:
            return {}
        file = added
    text = file.read_text()
    knob = re.search(r"^match_active: null\b.*#.*sets (\w+)", text, re.MULTILINE)
    values = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()} | ({"knob": knob[1]} if knob else {})


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
