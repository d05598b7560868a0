"""What subtasks that ask the same documents have in common: their mean is less sure than that of independent ones."""

# S subtasks, N documents

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import pandas as pd

from analysis.attempts import attempts
from analysis.frame_rows import Row
from analysis.load import Records
from analysis.pairing import partners_of


class SharedDocuments:
    """Of the cells of a study. Subtasks of one task are held against one another, by the documents' numbers: those of
    truthfulqa score the same questions, where a changed answer to one may change that to the other; those of a group of
    unlike data sets have no more in common than chance gives."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def factors(self, part: Sequence[Row], quantity: str) -> dict[str, float]:
        """How much wider each subtask's interval is to be taken, so that the mean over all of them is as wide as its
        documents say: the root of a ratio of variances clustered by document, across a task's subtasks and within each.

        Args:
            part: Rows of one setting, batch size and series.
            quantity: "score" or "difference"; nothing is known of others.

        Returns:
            Subtask -> a factor of at least 1; subtasks with 1 are left out.
        """
        if quantity not in ("score", "difference"):
            return {}
        found: dict[str, float] = {}
        for task in dict.fromkeys(row["task"] for row in part if pd.isna(row["mixing"]) and row["unit"] == "%"):
            own: dict[str, list[Row]] = {}
            for row in part:
                if row["task"] == task and row["unit"] == "%":
                    own.setdefault(str(row["subtask"]), []).append(row)
            if len(own) > 1:
                factor = self._factor([self._residuals(rows, quantity) for rows in own.values()])
                found |= dict.fromkeys(own, factor) if factor > 1 else {}
        return found

    @staticmethod
    def _factor(residuals_S: Sequence[pd.Series]) -> float:
        together = pd.concat(residuals_S, axis=1).fillna(0.0).to_numpy(dtype=float)  # [N, S]
        apart = float((together**2).sum())
        return math.sqrt(max(1.0, float((together.sum(axis=1) ** 2).sum()) / apart)) if apart > 0 else 1.0

    def _residuals(self, rows: Sequence[Row], quantity: str) -> pd.Series:
        """What each document adds to the error of the subtask's mean; empty where there is nothing to compare."""
        values = []
        for cell in " ".join(str(row["cell_ids"]) for row in rows).split():
            own = self._scores.get((cell, str(rows[0]["subtask"])))
            other = self._scores.get((self._partners[cell], str(rows[0]["subtask"])))
            if own is not None and quantity == "score":
                values.append(own)
            elif own is not None and other is not None:
                values.append((own - other).dropna())
        if not values:
            return pd.Series(dtype=float)
        each = pd.concat(values).groupby(level=0).mean()
        return (each - each.mean()) / len(each)

    @cached_property
    def _scores(self) -> dict[tuple[str, str], pd.Series]:
        """Mean score of each document, by cell and subtask."""
        each = attempts(self._records.samples, self._records.responses)
        return {
            (str(cell), str(subtask)): part.groupby("doc_id")["score"].mean()
            for (cell, subtask), part in each.groupby(["cell_id", "subtask"], observed=True)
        }

    @cached_property
    def _partners(self) -> dict[str, str]:
        return partners_of(self._records.cells)
