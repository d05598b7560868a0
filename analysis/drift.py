"""Length drift: how long thoughts and answers are against vanilla's on the same requests, and what a solved document
costs. A policy may make a model ramble: then a faster step does not make a faster answer.
"""

# N responses, G lanes

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import statistics
from analysis.attempts import attempts, several
from analysis.load import Records
from analysis.statistics import Array, Estimate, t_interval

PARTS = ("thought_tokens", "answer_tokens", "thought_cut_share")
"""Of responses whose thoughts were looked for."""
SOLVED = "tokens_per_solved"
TIME = "s_per_solved"
COLUMNS = (*(f"{name}{end}" for name in (*PARTS, SOLVED) for end in ("", "_difference")), TIME)
"""Estimates of a row of `compare.results`."""
NONE = Estimate(value=math.nan)
_FLAT = 1e-9
"""Standard errors below this are rounding."""

Key = tuple[str, str]
"""(cell, subtask)"""


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Of one (cell, subtask): what is averaged, over one of responses and documents."""

    name: NDArray[np.int64]
    """Request, or attempt."""
    document: NDArray[np.int64] | None
    """None where each has one response."""
    lane: NDArray[np.int64]
    values: dict[str, Array]


def drift(
    records: Records, partners: Mapping[str, str], tokens_per_s: Mapping[str, Estimate]
) -> dict[Key, dict[str, Estimate]]:
    """By (cell, subtask), each of COLUMNS that there is. `partners` names the vanilla cell of the same plan,
    `tokens_per_s` what a lane of a cell decodes (`latency_model`).

    Differences are paired by request, or by document, and clustered by lane. A solved document is one whose score (0 to
    1) counts; its tokens are those of all documents, right and wrong, over the sum of their scores. Its seconds are a
    lane's, prefills apart: these tokens over what the lane decodes in a second.
    """
    found: dict[Key, dict[str, Estimate]] = {}
    thoughts, solved = _thoughts(records.responses), _solved(attempts(records.samples, records.responses))
    for key, own in thoughts.items():
        other = thoughts.get((partners.get(key[0], ""), key[1]))
        found.setdefault(key, {}).update(_of_thoughts(own, other, is_vanilla=partners.get(key[0]) == key[0]))
    for key, own in solved.items():
        other = solved.get((partners.get(key[0], ""), key[1]))
        cost = _per_solved(own)
        found.setdefault(key, {})[SOLVED] = cost
        found[key][f"{SOLVED}_difference"] = (
            Estimate(value=0.0) if partners.get(key[0]) == key[0] else _dearer(own, other)
        )
        if (rate := tokens_per_s.get(key[0])) is not None:
            found[key][TIME] = _over(cost, rate)
    return found


def _thoughts(responses: pd.DataFrame) -> dict[Key, _Rows]:
    if "thought" not in responses or not len(responses):
        return {}
    known = responses[responses["thought"].notna().to_numpy()]
    if known.empty:
        return {}
    thought = known["thought_tokens"].to_numpy(dtype=float)
    values = {
        "thought_tokens": thought,
        "answer_tokens": known["new_tokens"].to_numpy(dtype=float) - thought,
        "thought_cut_share": (known["thought"] == "cut").to_numpy(dtype=float),
    }
    return _grouped(known, "request", values)


def _solved(samples: pd.DataFrame) -> dict[Key, _Rows]:
    """Of what was generated and is scored from 0 to 1."""
    if not {"new_tokens", "finish_reason", "score"} <= set(samples) or not len(samples):
        return {}
    score = samples["score"].astype(float)
    fit = (samples["finish_reason"] != "scored") & samples["new_tokens"].notna() & score.between(0.0, 1.0)
    known = samples[fit.to_numpy()]
    values = {name: known[name].to_numpy(dtype=float) for name in ("new_tokens", "score")}
    return _grouped(known, "attempt", values) if len(known) else {}


def _grouped(rows: pd.DataFrame, name: str, values: Mapping[str, Array]) -> dict[Key, _Rows]:
    names, lane, document = (rows[column].to_numpy() for column in (name, "lane", "doc_id"))
    return {
        key: _Rows(
            name=names[at],
            document=several(document[at]),
            lane=lane[at],
            values={of: each[at] for of, each in values.items()},
        )
        for key, at in rows.groupby(["cell_id", "subtask"], observed=True).indices.items()
    }


def _matched(own: _Rows, other: _Rows | None) -> tuple[_Rows, _Rows] | None:
    """Both, on what both hold, in the same order."""
    if other is None:
        return None
    _, mine, theirs = np.intersect1d(own.name, other.name, return_indices=True)
    return (_taken(own, mine), _taken(other, theirs)) if len(mine) else None


def _taken(rows: _Rows, at: NDArray[np.intp]) -> _Rows:
    values = {name: each[at] for name, each in rows.values.items()}
    document = None if rows.document is None else rows.document[at]
    return _Rows(name=rows.name[at], document=document, lane=rows.lane[at], values=values)


def _of_thoughts(own: _Rows, other: _Rows | None, *, is_vanilla: bool) -> dict[str, Estimate]:
    found, both = {}, _matched(own, other)
    for name in PARTS:
        share = name == "thought_cut_share"
        values, ends = own.values[name], f"{name}_difference"
        found[name] = (statistics.mean if share else _mean)(values, own.lane, own.document)
        if is_vanilla:
            found[ends] = Estimate(value=0.0)
        elif both is None:
            found[ends] = NONE
        elif share:
            found[ends] = statistics.paired_difference(
                both[0].values[name], both[1].values[name], both[0].lane, both[0].document
            )
        else:
            found[ends] = _mean(both[0].values[name] - both[1].values[name], both[0].lane, both[0].document)
    return found


def _mean(values_N: Array, lanes_N: NDArray[np.int64], documents_N: NDArray[np.int64] | None) -> Estimate:
    """Without any spread there is no interval: how far lanes vary was not seen."""
    estimate = statistics.mean_of(values_N, lanes_N, documents_N)
    return Estimate(value=estimate.value) if estimate.se is not None and estimate.se <= _FLAT else estimate


def _sums(rows: _Rows) -> tuple[Array, Array]:
    """Tokens and solved documents of each lane."""
    tokens, _ = statistics.cluster_sums(rows.values["new_tokens"], rows.lane)
    return tokens, statistics.cluster_sums(rows.values["score"], rows.lane)[0]


def _influence(rows: _Rows) -> tuple[float, Array]:
    """Tokens over solved documents, and what each response has to do with it (the delta method)."""
    tokens, score = rows.values["new_tokens"], rows.values["score"]
    ratio = float(tokens.sum() / score.sum())
    return ratio, (tokens - ratio * score) * len(score) / score.sum()


def _per_solved(rows: _Rows) -> Estimate:
    tokens_G, solved_G = _sums(rows)
    if solved_G.sum() <= 0:
        return NONE
    if rows.document is None:
        estimate = statistics.ratio_of_sums(tokens_G, solved_G)
    else:
        ratio, influence = _influence(rows)
        estimate = statistics.mean_of(ratio + influence, rows.lane, rows.document)
    return estimate if estimate.low is None else replace(estimate, low=max(estimate.low, 0.0))


def _dearer(own: _Rows, other: _Rows | None) -> Estimate:
    """Of two ratios over the same lanes, the difference, linearised (the delta method), with G - 1 degrees."""
    both = _matched(own, other)
    if both is None:
        return NONE
    if both[0].document is not None:
        if min(rows.values["score"].sum() for rows in both) <= 0:
            return NONE
        (mine, own_influence), (theirs, other_influence) = map(_influence, both)
        changes = mine - theirs + own_influence - other_influence
        estimate = statistics.mean_of(changes, both[0].lane, both[0].document)
        flat = estimate.se is not None and estimate.se <= _FLAT
        return Estimate(value=estimate.value) if flat else estimate
    influence, values = np.zeros(1), []
    for rows, sign in zip(both, (1, -1), strict=True):
        # in the lanes of one's own plan, which are the partner's
        tokens_G, solved_G = _sums(replace(rows, lane=both[0].lane))
        if solved_G.sum() <= 0:
            return NONE
        ratio = float(tokens_G.sum() / solved_G.sum())
        values.append(ratio)
        influence = influence + sign * (tokens_G - ratio * solved_G) / solved_G.sum()
    value, lanes = values[0] - values[1], len(influence)
    if lanes < 2:
        return Estimate(value=value)
    se = math.sqrt(lanes / (lanes - 1) * float(influence @ influence))
    return Estimate(value=value) if se <= _FLAT else t_interval(value, se, lanes - 1)


def _over(cost: Estimate, rate: Estimate) -> Estimate:
    """Tokens over tokens per second; the errors of the two, which were measured apart, add in squares."""
    if not rate.value > 0 or math.isnan(cost.value):
        return NONE
    value = cost.value / rate.value
    if cost.se is None or rate.se is None or cost.df is None or rate.df is None:
        return Estimate(value=value)
    se = value * math.hypot(cost.se / cost.value, rate.se / rate.value)
    return t_interval(value, se, min(cost.df, rate.df)) if se > _FLAT else Estimate(value=value)
