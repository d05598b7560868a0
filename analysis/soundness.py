"""What a reader must know before any number: cells that are missing, and cells that ran in unlike environments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.activity import FULL
from analysis.labels import settings_of
from analysis.load import Records
from analysis.pairing import partners_of
from lynx_exp.store.environment import differing
from lynx_exp.wording import counted

_SHOWN = 2
"""Values of a field, or unfinished cells, that a warning names."""
_NAMED = 5
"""Cells that are set aside, or lack a score, that it names."""


def warnings(records: Records) -> tuple[str, ...]:
    """One line each, for every table and figure of the records; empty if all cells are done and ran alike."""
    cells = records.cells
    return (
        *_unfinished(records.unfinished),
        *_aside(records.set_aside),
        *_no_number(records),
        *_invalid(cells),
        *_unlike(cells),
        *_unlike_pairs(cells),
        *_draining(cells),
        *_not_judged(records.samples),
    )


def _not_judged(samples: pd.DataFrame) -> list[str]:
    """Programs that were not judged: a value could not cross between them and their tests, or there was no process."""
    told = samples["verdict"].dropna().astype(str) if "verdict" in samples else pd.Series(dtype=str)
    reasons = [reason for text in told for reason in _reasons(text)]
    lines = []
    for kind in ("transport", "not started"):
        if lost := sum(reason.startswith(kind) for reason in reasons):
            lines.append(f"{lost} of {counted(len(reasons), 'program')} ended in `{kind}`: not judged, counted as 0")
    return lines


def _reasons(verdict: str) -> list[str]:
    """Of one program, or of several that a document ran; as it stands where it cannot be read."""
    try:
        listed = json.loads(verdict)
    except ValueError:
        return [verdict]
    return list(map(str, listed)) if isinstance(listed, list) else [verdict]


def _draining(cells: pd.DataFrame) -> list[str]:
    """Cells whose lanes were not full: their experts, differences and times are of smaller batches than they name."""
    several = cells["batch_size"].astype(int) > 1
    static = several & (cells["batching"] == "static")
    drained = several & ~static & (cells["full_steps"].astype(float) < FULL)
    lines = []
    if static.any():
        ran = counted(int(static.sum()), "cell")
        lines.append(f"lanes drain (batching=static): {ran} ran smaller batches than they name")
    if drained.any():
        ran = counted(int(drained.sum()), "cell")
        lines.append(f"lanes drained: in {ran} under {100 * FULL:.0f} % of the steps had every slot taken")
    return lines


def _unfinished(cells: Sequence[str]) -> list[str]:
    """`cells` as in `Records.unfinished`: "FOLDER (STATE)"."""
    if not cells:
        return []
    states = Counter(cell.rpartition(" (")[2].removesuffix(")") for cell in cells)
    by_state = ", ".join(
        f"{count} {state}" for state, count in sorted(states.items(), key=lambda item: (-item[1], item[0]))
    )
    named = ", ".join(cell.rpartition(" (")[0] for cell in cells[:_SHOWN])
    more = f" and {len(cells) - _SHOWN} more" if len(cells) > _SHOWN else ""
    return [f"missing: {counted(len(cells), 'cell')} not finished ({by_state}): {named}{more}"]


def _aside(cells: Sequence[str]) -> list[str]:
    """A line for each of the first, as in `Records.set_aside`: "FOLDER: FILE: REASON"."""
    lines = [f"set aside: {cell}" for cell in cells[:_NAMED]]
    if len(cells) > _NAMED:
        lines.append(f"set aside: {counted(len(cells) - _NAMED, 'cell')} more (lynx-results validate names them)")
    return lines


def _no_number(records: Records) -> list[str]:
    """Headline metrics that came out as no finite number, which the cell stores as null."""
    metrics = records.metrics
    hit = metrics[metrics["headline"].astype(bool) & metrics["value"].isna()]
    if hit.empty:
        return []
    folders = dict(zip(records.cells["cell_id"], records.cells["path"], strict=True))
    named = [
        f"{row['subtask']} {row['metric']} of {Path(folders[row['cell_id']]).name}"
        for row in hit.head(_NAMED).to_dict("records")
    ]
    more = f" and {len(hit) - _NAMED} more" if len(hit) > _NAMED else ""
    return [f"no finite number, so shown as missing: {', '.join(named)}{more}"]


def _invalid(cells: pd.DataFrame) -> list[str]:
    """Cells that ran to their end and yet say nothing about their model."""
    hit = cells[cells["invalid"] != ""]
    if hit.empty:
        return []
    first = hit.iloc[0]
    more = f", and {len(hit) - 1} more" if len(hit) > 1 else ""
    return [f"not to be trusted: {counted(len(hit), 'cell')}: {Path(first['path']).name} ({first['invalid']}){more}"]


def _unlike(cells: pd.DataFrame) -> list[str]:
    """Of each setting, the fields of the environment in which its cells differ."""
    settings = settings_of(cells)
    lines = []
    for setting, group in cells.groupby(cells["cell_id"].map(settings), sort=True):
        for name, values in differing(_environments(group)).items():
            counts = Counter({value: len(names) for value, names in values.items()})
            shown = ", ".join(
                f"{_short(name, value)} ({counted(n, 'cell')})" for value, n in counts.most_common(_SHOWN)
            )
            more = f", {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
            where = f"{setting}: " if setting else ""
            lines.append(f"unlike environments: {where}{name} {shown}{more}")
    return lines


def _unlike_pairs(cells: pd.DataFrame) -> list[str]:
    """How many policies are compared with a vanilla that ran elsewhere: their differences hold more than the policy."""
    known = _environments(cells)
    pairs = [(cell, other) for cell, other in partners_of(cells).items() if other and other != cell]
    unlike = sum(known[a] != known[b] and bool(differing({a: known[a], b: known[b]})) for a, b in pairs)
    if not unlike:
        return []
    return [f"unlike environments: {unlike} of {len(pairs)} cells ran in another one than their vanilla"]


def _environments(cells: pd.DataFrame) -> dict[str, dict[str, str]]:
    return {cell: json.loads(text) for cell, text in cells[["cell_id", "environment"]].itertuples(index=False)}


_HASHES = ("code", "model.digest", "torch.git")


def _short(name: str, value: str) -> str:
    """Of a hash or revision the first digits."""
    return value[:10] if name in _HASHES else value
