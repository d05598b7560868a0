"""The most likely token, and what happens where there is none. R rows, V vocabulary."""

from __future__ import annotations

from torch import Tensor

NO_TOKEN = -1
"""In place of a token where a row's logits are NaN or infinite: it comes to the host as tokens do, at no cost."""


class NotANumber(ArithmeticError):
    """Logits are NaN or infinite: nothing that follows from them means anything."""


def most_likely(logits_RV: Tensor) -> Tensor:
    """`[R]` the token of the greatest logit, the first of equal ones; `NO_TOKEN` in rows that have none."""
    value_R, token_R = logits_RV.max(-1)
    return token_R.where(value_R.isfinite(), NO_TOKEN)
