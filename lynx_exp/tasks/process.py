"""What scores the responses to some documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

Process: TypeAlias = Callable[[Sequence[Mapping[str, Any]], Sequence[list[Any]]], list[dict[str, Any]]]
"""Documents and, of each, its filtered responses -> the values of its metrics."""
