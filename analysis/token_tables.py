"""Tables of single tokens (`tokens=true`), which are too long to be among the frames of `load`: read when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

COLUMNS = ("subtask", "request", "doc_id", "lane", "step", "layer", "kl", "confidence")


def cells_with_tokens(cells: pd.DataFrame) -> pd.DataFrame:
    """Of `Records.cells`, those that wrote them."""
    return cells[[(Path(path) / "tokens.parquet").is_file() for path in cells["path"]]]


def read_tokens(cell: str | Path, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """One row a (subtask, request, fed token, layer) of the cell in this folder, without its experts.

    `kl`: divergence from vanilla of the next-token distribution after the token, nats; `confidence`: variance of the
    router's normalised probabilities; `step`: the lane's decode step.
    """
    return pq.read_table(Path(cell) / "tokens.parquet", columns=list(columns)).to_pandas()


def expert_counts(cell: str | Path, num_experts: int) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """(who, how often): one row a (subtask, lane, decode step, layer), and for each how many of its tokens ran each
    expert, [rows, experts]."""
    table = pq.read_table(Path(cell) / "tokens.parquet", columns=["subtask", "lane", "step", "layer", "experts"])
    slots = table["experts"].combine_chunks()
    width = np.diff(slots.offsets.to_numpy())
    keys = table.drop_columns(["experts"]).to_pandas()
    batch, groups = keys.groupby(list(keys), sort=False).ngroup(), keys.drop_duplicates(ignore_index=True)
    place = np.repeat(batch.to_numpy(), width) * num_experts + slots.flatten().to_numpy()
    counts = np.bincount(place, minlength=len(groups) * num_experts)
    return groups, counts.reshape(len(groups), num_experts)
