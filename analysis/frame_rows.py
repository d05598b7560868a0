"""Rows of frames, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

Row = Mapping[str, Any]
"""By column. What each column holds stands where it is declared; no type checker knows the columns of a frame."""


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """In the order of the frame."""
    rows: list[Row] = frame.to_dict("records")
    return rows
