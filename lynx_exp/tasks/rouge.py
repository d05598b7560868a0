"""TruthfulQA scores each pair of texts by a bootstrap of a single value: a thousand copies of it, half a second a
document. Here that value is taken at once; it is the same one, bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray


@contextmanager
def no_bootstrap_of_one() -> Iterator[None]:
    """`rouge_score`'s bootstrap of one value gives the value. Nothing where `rouge_score` has not been imported."""
    scoring = sys.modules.get("rouge_score.scoring")
    if scoring is None:
        yield
        return
    resample = scoring.BootstrapAggregator._bootstrap_resample

    def at_once(self: object, matrix: ndarray) -> ndarray:
        return matrix[[0, 0, 0]] if len(matrix) == 1 else resample(self, matrix)

    scoring.BootstrapAggregator._bootstrap_resample = at_once
    try:
        yield
    finally:
        scoring.BootstrapAggregator._bootstrap_resample = resample
