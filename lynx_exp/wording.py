"""Words for people that every part of the package uses in one form. Light, and imports nothing of the package."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any


def did_you_mean(value: object, known: Collection[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean X?` if a known name has the same words in another order, or is close to `value` (by difflib's
    ratio); else nothing."""
    words = sorted(str(value).split("_"))
    same = [name for name in known if sorted(name.split("_")) == words]
    close = same or get_close_matches(str(value), list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def counted(number: float, what: str, form: str = "{}") -> str:
    """`1 cell`, `2 cells`, `0 cells`: a number of things, `what` being one of them."""
    return f"{form.format(number)} {what}{'' if number == 1 else 's'}"


def as_bytes(size: float) -> str:
    """`17 B`, `1.5 MiB`: a size in the largest unit of which it is one, up to GiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def first_line(error: BaseException | str) -> str:
    """The first line of an error's text that says something; of an error without text, its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines:
        return lines[0]
    return type(error).__name__ if isinstance(error, BaseException) else ""


def policy_label(
    name: str, parameters: Mapping[str, Any], usual: Mapping[str, Any], hidden: Collection[str], **beside: Any
) -> str:
    """A policy as people read it: `lynx(alpha=3, beta=2)`.

    Without parameters that are null, and without those in `hidden` that have their usual value. `beside`: what is shown
    after the parameters where it is not null.
    """
    shown = [
        f"{key}={Path(value).stem if key == 'calibration' and isinstance(value, str) else _short(value)}"
        for key, value in parameters.items()
        if value is not None and not (key in hidden and usual.get(key) == value)
    ]
    shown += [f"{key}={_short(value)}" for key, value in beside.items() if value is not None]
    return f"{name}({', '.join(shown)})" if shown else name


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
