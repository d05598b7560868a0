"""What a preset says of its checkpoint's own files: what a plan goes by before they are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lynx_exp.config.allowed import check_fields, choice, integer
from lynx_exp.config.choices import one_of
from lynx_exp.config.roles import Role, plain

TEMPLATES = ("required", "none")
THINKING = ("none", "always", "flag", "effort")
STORAGES = ("float8", "mxfp4")
SAMPLING = ("temperature", "top_p", "top_k")
DECLARED = ("generation", "context", "template", "thinking", "storage")
"""Fields that may be unverified."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """What plan=true goes by before a model of kind=hub is here; held against its files once they are, by which a run
    goes."""

    generation: dict[str, Any] = plain(role=Role.COSMETIC, factory=dict)
    """Of its generation_config.json temperature, top_p and top_k; empty: not known."""
    context: int | None = integer(None, 1, role=Role.COSMETIC)
    """Tokens of a prompt and its response that it was made for, where that is known; at most its configuration's
    positions, which count where this is null."""
    template: str | None = choice(None, TEMPLATES, role=Role.COSMETIC)
    """Its chat template. required: it was tuned to be asked by it; none: it has none; null: not known."""
    thinking: str | None = choice(None, THINKING, role=Role.COSMETIC)
    """How its template treats thoughts. none: no word of them; always: it opens one, without a flag; flag: `flag` turns
    them on and off; effort: by task.chat_template_args.reasoning_effort; null: not known."""
    flag: str | None = plain(role=Role.COSMETIC)
    """With thinking=flag, what the template calls it."""
    storage: str | None = choice(None, STORAGES, role=Role.COSMETIC)
    """How its experts are stored, where that is smaller than bfloat16; null: it is not."""
    unverified: list[str] = plain(role=Role.COSMETIC, factory=list)
    """Which of these were not seen in its own files or on its card; a plan says so where it goes by one."""

    def __post_init__(self) -> None:
        where = "model.checkpoint"
        check_fields(self, f"{where}.")
        for key, value in self.generation.items():
            one_of(f"{where}.generation", key, SAMPLING)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise ValueError(f"{where}.generation.{key}={value}: must be a number, at least 0")
            if key == "temperature" and not (value == 0 or 1e-3 <= value <= 1e3):
                raise ValueError(f"{where}.generation.{key}={value}: must be 0 (greedy), or from 0.001 to 1000")
            if key == "top_p" and not 0 < value <= 1:
                raise ValueError(f"{where}.generation.{key}={value}: must be above 0 and at most 1")
            if key == "top_k" and value != int(value):
                raise ValueError(f"{where}.generation.{key}={value}: must be a whole number, at least 0")
        for name in self.unverified:
            one_of(f"{where}.unverified", name, DECLARED)
        if (self.flag is not None) != (self.thinking == "flag"):
            flag, thinking = self.flag or "null", self.thinking or "null"
            raise ValueError(f"{where}.flag={flag}: goes with {where}.thinking=flag, and is {thinking} here")
        if self.template == "none" and self.thinking not in (None, "none"):
            raise ValueError(f"{where}.thinking={self.thinking}: is a template's, and {where}.template=none")

    def doubt(self, name: str) -> str:
        """` (unverified)` after what rests on a field that was not seen; else nothing."""
        return " (unverified)" if name in self.unverified else ""
