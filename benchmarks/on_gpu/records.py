"""How a section tells what it found: a JSON object a line as soon as it is known; other lines are for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]
"""`check` with `compared` and `failures`, or `case` with numbers."""


def check(name: str, compared: int, failures: Sequence[str]) -> None:
    """A section with a failure fails the whole."""
    print(f"{name}: {compared} comparisons, {len(failures)} failures", *failures[:20], sep="\n  ")
    _tell({"check": name, "compared": compared, "failures": list(failures)})


def case(kind: str, /, **numbers: Any) -> None:
    shown = "  ".join(f"{key} {_short(value)}" for key, value in numbers.items())
    print(f"{kind}: {shown}")
    _tell({"case": kind, **numbers})


def _tell(record: Record) -> None:
    print(json.dumps(record), flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read(line: str) -> Record | None:
    """The record of a line; None for what is for people."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and ("check" in found or "case" in found) else None
