"""Compares a printed number with a repeated one: equal as printed, within the tolerance of its kind, or off."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from benchmarks.artifact.pages import Printed

Verdict = Literal["equal", "within", "off"]
WORST: tuple[Verdict, ...] = ("off", "within", "equal")


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a repeated number of one kind may be from the printed one."""

    absolute: float = 0.0
    relative: float = 0.0
    ratio: float | None = None
    """Of what spans orders of magnitude, or depends on the machine: the largest factor between the two."""
    is_time: bool = False
    """Whether it is one of times, which other work on the machine disturbs. Their intervals are not compared."""
    why: str = ""

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"{self.ratio:g} times more or less"
        parts = [f"±{self.absolute:g}"] if self.absolute else []
        parts += [f"±{100 * self.relative:g} %"] if self.relative else []
        return " and ".join(parts) or "as printed"

    def verdict(self, printed: Printed, got: float) -> Verdict:
        if not math.isfinite(got):
            return "off"
        value, got = printed.value, got + 0.0
        if abs(got - value) <= printed.half_step * (1 + 1e-6):
            return "equal"
        if self.ratio is not None:
            return "within" if value > 0 < got and 1 / self.ratio <= got / value <= self.ratio else "off"
        allowed = printed.half_step + self.absolute + self.relative * abs(value)
        return "within" if abs(got - value) <= allowed else "off"


@dataclass(frozen=True, kw_only=True)
class Compared:
    where: str
    """Row and column, or the sentence."""
    printed: str
    got: str
    verdict: Verdict
    numbers: int


def compare(where: str, cell: str, found: list[Printed], got: list[float], tolerance: Tolerance) -> Compared:
    """A cell: its numbers one by one, as many as it prints; of a time only the first, without its interval."""
    found = found[:1] if tolerance.is_time else found
    if len(got) < len(found):
        return Compared(where=where, printed=cell, got="nothing to compare", verdict="off", numbers=len(found))
    verdicts = [tolerance.verdict(one, value) for one, value in zip(found, got, strict=False)]
    digits = [len(one.text.partition(".")[2]) for one in found]
    shown = " ".join(f"{value + 0.0:.{places}f}" for value, places in zip(got, digits, strict=False))
    worst: Verdict = next((one for one in WORST if one in verdicts), "equal")
    return Compared(where=where, printed=cell, got=shown, verdict=worst, numbers=len(found))
