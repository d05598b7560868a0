"""A results folder, read once: records, estimates with their verdicts, and what stands in the way of trusting them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from analysis import composition
from analysis.compare import results
from analysis.labels import settings_of
from analysis.load import Records, load
from analysis.macro import summary
from analysis.plans import pooled
from analysis.soundness import warnings
from analysis.study_points import merged
from analysis.verdicts import MARGIN, judged
from lynx_exp.wording import did_you_mean


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """What tables, figures and recommendations are made of."""

    records: Records
    rows: pd.DataFrame
    """One row per point and subtask: `compare.results`, `points.merged`, `plans.pooled`, with `verdicts.judged`."""
    summary: pd.DataFrame
    """Macro means: `macro.summary` with `verdicts.judged`."""
    lanes: pd.DataFrame
    """Lanes of mixes: `composition.lanes`."""
    margin: float
    """Points."""
    warnings: tuple[str, ...]
    """For every table and figure: `soundness.warnings`."""

    def of(self, setting: str) -> Study:
        """What there is of one setting.

        Args:
            setting: As in the column `setting` of `rows`.

        Returns:
            Its cells, rows, means and lanes.
        """
        parts = {name: getattr(self, name) for name in ("rows", "summary", "lanes")}
        own = {name: part[part["setting"] == setting] for name, part in parts.items() if len(part)}
        settings = settings_of(self.records.cells)
        cells = {cell for cell, of in settings.items() if of == setting}
        return replace(self, records=self.records.of(cells), **own) if len(cells) < len(settings) else self

    def only(self, policies: Sequence[str] = (), tasks: Sequence[str] = ()) -> Study:
        """What there is of some policies and tasks, the means taken anew.

        Args:
            policies: By name or label; vanilla stays, to compare with. Empty for all.
            tasks: Tasks or subtasks. Empty for all.

        Returns:
            The study with these rows.

        Raises:
            ValueError: One of them is not on record.
        """
        rows, means = self.rows, self.summary
        if tasks:
            _known("--task", tasks, [*rows["task"], *rows["subtask"]])
            rows = rows[rows["task"].isin(tasks) | rows["subtask"].isin(tasks)]
        if len(rows) < len(self.rows):
            # other means: of all policies, and looked at after those of all tasks
            means = judged(summary(self.records, rows), self.margin, beside=self.summary)
        if policies:  # as sure as among all: to choose some afterwards makes none surer
            _known("--policy", policies, [*rows["policy"], *rows["series"]])
            chosen = rows["policy"].isin(policies) | rows["series"].isin(policies)
            rows = rows[chosen | (rows["policy"] == "vanilla")]
            means = means[means["series"].isin(rows["series"])] if len(means) else means
        return replace(self, rows=rows, summary=means)


def _known(option: str, names: Sequence[str], known: Iterable[str]) -> None:
    there = list(dict.fromkeys(known))
    for name in names:
        if name not in there:
            close = did_you_mean(name, there)
            raise ValueError(f"{option} {name}: not on record{close}; there are {', '.join(sorted(there))}")


def study(root: str | Path, margin: float = MARGIN) -> Study:
    """Read and compare all finished cells at or below a folder.

    Args:
        root: A study's folder, or any folder above.
        margin: Points that a difference is tested to be within.

    Returns:
        Records, estimates with their verdicts, and warnings.

    Raises:
        ValueError: The folder holds no finished cell, or the margin is not in (0, 100].
    """
    if not 0 < margin <= 100:
        raise ValueError(f"margin={margin:g}: must be above 0, and at most 100 (points)")
    records = load(root, warn=False)  # `warnings` names what is unfinished
    rows = pooled(records, merged(results(records)))
    means = summary(records, rows)
    several = means[means["subtasks"] > 1] if len(means) else means  # the mean of one subtask is that row itself
    return Study(
        records=records,
        rows=judged(rows, margin, beside=several),
        summary=judged(means, margin),  # what a study is about, and a family of its own; its subtasks come after
        lanes=composition.lanes(records, rows),
        margin=margin,
        warnings=warnings(records),
    )
