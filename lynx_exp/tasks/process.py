"""What scores the responses to some documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

Doc: TypeAlias = Mapping[str, object]
"""A document: the fields of its row."""
MetricValues: TypeAlias = dict[str, object]
"""Of one document, by metric: a number, or what the metric of a corpus needs of it."""
Process: TypeAlias = Callable[[Sequence[Doc], Sequence[list[object]]], list[MetricValues]]
"""Documents and, of each, its filtered responses -> the values of its metrics."""
