"""What timing.json says of the policy of a cell, or of vanilla where no other was timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

USED = ("step_gb", "gb_s", "s_mbu", "j_per_token")
"""What a timed step asked of the hardware; timing.json has each of the policy and of vanilla."""


def timed_subject(timing: Mapping[str, Any]) -> str:
    """`policy`, or `vanilla`."""
    return "vanilla" if timing.get("policy_active_experts") is None else "policy"


def hardware_numbers(timing: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `USED`, and `copy_gb_s`; None where it is not known."""
    own = timed_subject(timing)
    return {name: timing.get(f"{own}_{name}") for name in USED} | {"copy_gb_s": timing.get("copy_gb_s")}
