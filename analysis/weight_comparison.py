"""What other weights (`policy.weights`) make of a policy that is otherwise the same: its divergence from vanilla over
that with the policy's own weights, on the same responses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.compare import flat
from analysis.divergences import Divergences, aligned, ratio
from analysis.statistics import Estimate
from analysis.study import Study

OWN, ORIGINAL, REFERENCE = "renormalize", "original", "reference"
TUNED = "reference, k2 tuned"
"""k2 that had the least divergence on every other document, K (`original`) among them: odd documents choose for even
ones, and even ones for odd."""

_OF_WEIGHTS = re.compile(r"(weights|k2)=[^,)]*(, )?")


def weighings(study: Study) -> pd.DataFrame:
    """One row per setting, policy, phases, batch size and weights, if several are on record for the same subtasks.

    `of`: the policy's label without weights; `weighing`: the weights; `k2`: those of `reference` (of TUNED that of each
    half, joined by a slash); `kl` millinats a token, mean over subtasks; `ratio`, an estimate: that over `kl` of
    `renormalize`; `difference` and `active_experts` as in the summary, of TUNED where both halves agree.
    """
    means = study.summary
    known = means[means["kl"].notna() & (means["subtasks"] == means["all_subtasks"])] if len(means) else means
    if known.empty:
        return pd.DataFrame()
    known = known.assign(
        of=[_without_weights(label) for label in known["policy_label"]],
        weighing=[_weighing(json.loads(params)) for params in known["policy_params"]],
    )
    found: list[dict[str, object]] = []
    for (_setting, batch, of, phases), part in known.groupby(["setting", "batch_size", "of", "phases"], sort=False):
        part = part.drop_duplicates("weighing").set_index("weighing")
        if OWN in part.index and len(part) > 1:
            common = {"batch_size": batch, "of": of, "phases": phases, "policy": part["policy"].iloc[0]}
            found += [common | row for row in _rows(study, part)]
    return pd.DataFrame(found)


def _without_weights(label: str) -> str:
    return _OF_WEIGHTS.sub("", label).replace(", )", ")").replace("()", "")


def _weighing(params: Mapping[str, object]) -> str:
    weights = str(params.get("weights", OWN))
    return f"{weights}({params['k2']})" if weights == REFERENCE else weights


def _rows(study: Study, part: pd.DataFrame) -> list[dict[str, object]]:
    names = list(part.index)
    cells = {name: [c for ids in _cells(study, part.loc[name]) for c in ids.split()] for name in names}
    rows = aligned(study.records, cells)
    if rows.empty:
        return []
    candidates = [name for name in names if name == ORIGINAL or name.startswith(REFERENCE)]
    chosen = _chosen(rows, candidates) if len(candidates) > 1 else None
    if chosen is not None:
        even = rows["doc_id"] % 2 == 0
        rows[TUNED] = rows[chosen[0]].where(even, rows[chosen[1]])
        names.append(TUNED)
    found = []
    divergences = Divergences.of(rows, names)
    for at, name in enumerate(names):
        against = [float(each == name) - float(each == OWN) for each in names]
        own = Estimate(value=1.0) if name == OWN else ratio(divergences.log_combination(against))
        stands = name if name != TUNED else chosen[0] if chosen is not None and chosen[0] == chosen[1] else None
        row: dict[str, object] = {"weighing": name, "k2": _k2(name, chosen)}
        row |= {"kl": 1000 * divergences.means()[at]} | flat("ratio", own)
        for column in ("active_experts", "difference", "difference_low", "difference_high", "guard"):
            row[column] = np.nan if stands is None else part.loc[stands, column]
        found.append(row)
    return found


def _cells(study: Study, row: pd.Series) -> Sequence[str]:
    rows = study.rows
    same = (rows["series"] == row["series"]) & (rows["batch_size"] == row["batch_size"])
    same &= rows["setting"] == row["setting"]
    return list(dict.fromkeys(rows.loc[same, "cell_ids"]))


def _chosen(rows: pd.DataFrame, candidates: Sequence[str]) -> tuple[str, str] | None:
    """(for even documents, for odd ones): each the best on the others."""
    best = []
    for others in (1, 0):
        half = rows[rows["doc_id"] % 2 == others]
        if half["subtask"].nunique() < rows["subtask"].nunique():
            return None
        best.append(candidates[int(np.argmin(Divergences.of(half, candidates).means()))])
    return best[0], best[1]


def _k2(name: str, chosen: tuple[str, str] | None) -> str:
    if name == TUNED and chosen is not None:
        return "/".join(dict.fromkeys(_k2(each, None) for each in chosen))
    inside = re.search(r"\((\d+)\)", name)
    return inside[1] if inside else "K" if name == ORIGINAL else ""
