"""Hardware by its data sheet, which a plan goes by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lynx_exp.config.allowed import check_fields, choice, integer
from lynx_exp.config.choices import MOST_ROWS
from lynx_exp.config.roles import Role, plain


@dataclass(kw_only=True)
class HardwareConfig:
    """plan=true: what it goes by for time and memory."""

    name: str = plain("here", role=Role.COSMETIC)
    """Which; here is the machine that this runs on, as it is found. Any other makes plan=true give a roofline."""
    label: str = plain("", role=Role.COSMETIC)
    """What it is called in full."""
    devices: int = integer(1, 1, MOST_ROWS, role=Role.COSMETIC)
    """How many of it. With neither model.parallel nor model.device_map a model is on one."""
    memory_gib: float | None = plain(role=Role.COSMETIC)
    """Of one device, in GiB."""
    bandwidth_gb_s: float | None = plain(role=Role.COSMETIC)
    """Of one device's memory, in 1e9 bytes a second, as its data sheet says."""
    tflops: float | None = plain(role=Role.COSMETIC)
    """Of one device, in 1e12 operations a second on dense matrices, as its data sheet says."""
    reported: str = plain("", role=Role.COSMETIC)
    """What the driver's name of it has in it. Finished cells that ran on such devices then tell the time."""
    device: str = choice("cuda", ("cuda", "cpu"), role=Role.COSMETIC)
    """Its kind. What `tflops` is of, and dtype=auto: bfloat16, or float32 on a CPU."""

    def __post_init__(self) -> None:
        check_fields(self, "hardware.")
        for name in ("memory_gib", "bandwidth_gb_s", "tflops"):
            value = getattr(self, name)
            if self.is_named and not (value is not None and 0 < value < math.inf):
                shown = "null" if value is None else f"{value:g}"
                raise ValueError(f"hardware.{name}={shown}: must be above 0 for hardware={self.name}")

    @property
    def is_named(self) -> bool:
        return self.name != "here"
