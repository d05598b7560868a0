"""Numbers of a study that follow from the model, so that one file serves any: `policy.rank=range(0,<K>)`.

`<3E/4>` and the like: E experts of a layer, K of a token, L layers with a router, V = (E-1)/E^2, the largest variance
that E probabilities can have. A factor before the letter, a divisor and a whole number to add behind it are optional.
E, K and L are rounded, and are 1 at least.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

_NUMBER = re.compile(r"<(\d+(?:\.\d+)?)?([EKLV])(?:/(\d+))?([+-]\d+)?>")


class Shape(Protocol):
    """What is known of a model before its weights load."""

    @property
    def num_experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def num_layers(self) -> int: ...


def has_model_numbers(words: Sequence[str]) -> bool:
    return any("<" in word for word in words)


def filled(word: str, shape: Shape) -> str:
    """The override with its numbers. ValueError for what is in angle brackets and no such number."""

    def number(match: re.Match[str]) -> str:
        factor, letter, divisor, more = match.groups()
        experts = shape.num_experts
        whole = {"E": experts, "K": shape.top_k, "L": shape.num_layers, "V": (experts - 1) / experts**2}[letter]
        value = float(factor or 1) * whole / int(divisor or 1) + int(more or 0)
        return f"{value:.6g}" if letter == "V" else str(max(1, int(value + 0.5)))

    text = _NUMBER.sub(number, word)
    if "<" in text:
        raise ValueError(f"{word}: in angle brackets stand numbers of the model, such as <K>, <3E/4>, <L/2> or <0.1V>")
    return text
