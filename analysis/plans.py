"""Cells that differ only in their batch plan are one point: who shares a batch is chance, and part of the error."""

# P plans, N documents

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import bleu, guards, statistics
from analysis.attempts import attempts
from analysis.compare import NO_ESTIMATE, flat
from analysis.labels import POINT
from analysis.load import Records
from analysis.macro import HARDWARE
from analysis.pairing import partners_of
from analysis.statistics import Array, Estimate

_POINT = [name for name in POINT if name != "plan_seed"]
_SUMMED = ("lanes", "repeats", "windows")
_MEANS = (
    *("live_rows", "full_steps", "selection_us", "timed_active_experts", "prefill_active_experts", "prefill_tokens"),
)


def pooled(records: Records, rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` of `points.merged`, those of one point under several plans as one, in their order.

    `plans` counts them, `cell_ids` names their cells, joined by blanks. `score` and `difference` are means over plans;
    their intervals hold what differs between documents, which plans share, and between lanes, which they do not
    (`statistics.paired_difference`). `plan_sd` and `difference_plan_sd` are the standard deviations between plans of
    the two: the noise floor of this policy, missing with one plan. Other estimates are means over plans as wide as
    those of one plan, since they share documents. `better` and `worse` count documents by their mean over plans.
    """
    if rows.empty:
        return rows
    sizes = rows.groupby(_POINT, dropna=False, sort=False)["cell_id"].transform("size")
    if (sizes == 1).all():
        return rows
    each = attempts(records.samples, records.responses)
    samples = dict(iter(each.groupby(["cell_id", "subtask"], observed=True)))
    partners = partners_of(records.cells)
    found = rows.assign(at=range(len(rows)))
    made = [_one(part, samples, partners) for _, part in found[sizes > 1].groupby(_POINT, dropna=False, sort=False)]
    alone = found[sizes == 1]
    together = pd.DataFrame([*alone.to_dict("records"), *made], columns=found.columns)
    return together.sort_values("at").drop(columns="at").reset_index(drop=True)


def _one(part: pd.DataFrame, samples: Mapping[Hashable, pd.DataFrame], partners: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = part.iloc[0].to_dict()
    for name in part.columns:
        if f"{name}_low" in part.columns:
            ends = [f"{name}{end}" for end in ("", "_low", "_high", "_se", "_df")]
            row |= part[[end for end in ends if end in part.columns]].astype(float).mean().to_dict()
    row |= {name: part[name].sum() for name in _SUMMED if name in part}
    row |= {"plans": len(part), "cell_ids": " ".join(part["cell_id"]), "paired": bool(part["paired"].all())}
    row |= {name: float(part[name].astype(float).mean()) for name in (*_MEANS, *HARDWARE)}
    row |= {"precision_reached": _all_or_none(part["precision_reached"]), "busy": _any_or_none(part["busy"])}
    row["guard"] = guards.together(part["guard"])
    row["timing_final"] = bool(part["timing_final"].all())
    row["documents"] = int(part["documents"].max())
    row["plan_sd"] = float(part["score"].std(ddof=1))
    row["difference_plan_sd"] = float(part["difference"].std(ddof=1)) if row["paired"] else float("nan")
    own = [samples.get((cell, row["subtask"])) for cell in part["cell_id"]]
    if any(one is None for one in own) or row["unit"] == "own":
        return row
    score, changed = _score(own, row["unit"]), NO_ESTIMATE
    if row["policy"] == "vanilla":
        changed = Estimate(value=0.0)
    elif row["paired"]:
        vanilla = [samples[partners[cell], row["subtask"]] for cell in part["cell_id"]]
        changed = _difference(own, vanilla, row["unit"])
        if row["unit"] == "%":
            row |= _counted(own, vanilla)
    return row | flat("score", score) | flat("difference", changed) | {"difference_pad": changed.pad}


def _all_or_none(flags: pd.Series) -> bool | None:
    known = flags.dropna()
    return bool(known.astype(bool).all()) if len(known) else None


def _any_or_none(flags: pd.Series) -> bool | None:
    known = flags.dropna()
    return bool(known.astype(bool).any()) if len(known) else None


def _score(own: Sequence[pd.DataFrame], unit: str) -> Estimate:
    if unit == "BLEU":
        return statistics.dependent_mean(
            [bleu.corpus_bleu(_counts(one), one["lane"].to_numpy()) for one in own]
        ).within(0.0, 100.0)
    stack, plans, lanes = _stacked(own)
    return statistics.mean(stack["score"].to_numpy(dtype=float), lanes, stack["doc_id"], plans).scaled(100)


def _difference(own: Sequence[pd.DataFrame], vanilla: Sequence[pd.DataFrame], unit: str) -> Estimate:
    pairs = [_matched(mine, theirs) for mine, theirs in zip(own, vanilla, strict=True)]
    if any(mine.empty for mine, _ in pairs):
        return NO_ESTIMATE
    policy, plans, lanes = _stacked([mine for mine, _ in pairs])
    before, _, _ = _stacked([theirs for _, theirs in pairs])
    if unit == "BLEU":
        return bleu.paired_bleu_difference(_counts(policy), _counts(before), lanes, policy["doc_id"], plans)
    scores, others = (frame["score"].to_numpy(dtype=float) for frame in (policy, before))
    return statistics.paired_difference(scores, others, lanes, policy["doc_id"], plans).scaled(100)


def _counted(own: Sequence[pd.DataFrame], vanilla: Sequence[pd.DataFrame]) -> dict[str, float]:
    pairs = [_matched(mine, theirs) for mine, theirs in zip(own, vanilla, strict=True)]
    frames = [_stacked([pair[side] for pair in pairs])[0] for side in (0, 1)]
    changes = statistics.per_document(
        frames[0]["score"].to_numpy(dtype=float) - frames[1]["score"].to_numpy(dtype=float), frames[0]["doc_id"]
    )
    better, worse = int((changes > statistics.FLAT).sum()), int((changes < -statistics.FLAT).sum())
    return {"better": better, "worse": worse, "p_mcnemar": float("nan")}


def _matched(own: pd.DataFrame, vanilla: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    _, mine, theirs = np.intersect1d(own["attempt"], vanilla["attempt"], return_indices=True)
    return own.iloc[mine], vanilla.iloc[theirs]


def _stacked(parts: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """All rows, the plan of each, and its lane, numbered through all plans."""
    stack = pd.concat(parts, ignore_index=True)
    plans = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    lanes = plans.astype(np.int64) << 32 | stack["lane"].to_numpy(dtype=np.int64)
    return stack, plans, lanes


def _counts(samples: pd.DataFrame) -> Array:
    return bleu.sentence_counts(list(samples["filtered"]), list(samples["target"]))
