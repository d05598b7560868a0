"""Computes the results table: every estimate of every (cell, subtask), with its paired difference to vanilla.

It reads the frames of `analysis.load` and does no statistics of its own: `statistics`, `bleu`, `latency`, `activity`,
`guards` and `drift` do. `lynx-results table`, the figures and the result page start from its rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analysis import bleu, drift, guards, latency, latency_model, statistics
from analysis.activity import (
    active_experts,
    changed_share,
    occupancy,
    prompt_changed_share,
    prompt_retained_share,
    ratios,
    retained_share,
)
from analysis.attempts import attempts
from analysis.frame_rows import Row
from analysis.labels import policy_order, series_of, settings_of
from analysis.load import Records
from analysis.pairing import partners_of
from analysis.statistics import Array, Estimate
from lynx_exp.store.step_times import pairs_of_cells, steps_of_cells

log = logging.getLogger("analysis")

NO_ESTIMATE = Estimate(value=float("nan"))
"""Stands for an estimate that could not be computed."""


def results(records: Records) -> pd.DataFrame:
    """Compare every cell with vanilla on the same documents, plan and batch size.

    Each column is declared in `analysis.row_schema`, or in `lynx_exp.store.cell_columns` if it is a field of the cell;
    `docs/records.md` and `docs/reference` list them with unit and meaning. An estimate X has five columns: `X`, `X_low`
    and `X_high` (95 % interval), `X_se` and `X_df`.

    Args:
        records: The loaded cells of a study.

    Returns:
        One row per (cell, subtask): vanilla first, then no_drop, then the other policies by name and parameters.
        Missing numbers are NaN. `plans`, `plan_sd` and `difference_plan_sd` describe a single plan here;
        `plans.pooled` combines several.
    """
    samples = _samples(attempts(records.samples, records.responses))
    steps_ms = {name: steps_of_cells(records.timing, name) for name in ("vanilla", "policy")}
    pairs = pairs_of_cells(records.timing)
    headlines = _headlines(records)
    active, occupied = active_experts(records), occupancy(records)
    changed, prompt_changed = changed_share(records), prompt_changed_share(records)
    fidelity = _fidelity(records)
    settings = settings_of(records.cells)
    labels = series_of(records.cells)
    units = _units(records)
    partners = partners_of(records.cells)
    guard_of = guards.guards(records, partners)
    integrated = latency_model.integrate(records)
    drift_of = drift.drift(records, partners, {cell: known.tokens_per_s for cell, known in integrated.items()})
    # sentence statistics of BLEU are slow to count: vanilla's serve all cells that are compared with it
    counts: dict[tuple[str, str], Array] = {}
    rows = []
    for cell in records.cells.to_dict("records"):
        own_ms = steps_ms["vanilla" if cell["policy"] == "vanilla" else "policy"].get(cell["cell_id"], np.empty(0))
        paired = pairs.get(cell["cell_id"], np.empty((0, 2)))
        times = _times(own_ms, paired, cell["policy"], integrated.get(cell["cell_id"]))
        for headline in headlines.get(cell["cell_id"], []):
            key = (cell["cell_id"], headline["subtask"])
            partner = (partners[cell["cell_id"]], headline["subtask"])
            # the subtasks of a mix share lanes, and therefore steps: these belong to the mix, not to a subtask
            stream = (cell["cell_id"], headline["subtask"] if pd.isna(cell["mixing"]) else cell["task"])
            unit = units[headline["subtask"]]
            own, other = samples.get(key), None if cell["policy"] == "vanilla" else samples.get(partner)
            if unit == "BLEU":
                _count_sentences(counts, {key: own, partner: other})
            score, difference = _scores(headline, unit, own, other, counts.get(key), counts.get(partner))
            _check_value(cell, headline, unit, score)
            if cell["policy"] == "vanilla":
                difference = Estimate(value=0.0)
            rows.append(
                {name: cell[name] for name in _CELL_FIELDS}
                | {
                    "setting": settings[cell["cell_id"]],
                    "series": labels[cell["policy_label"], cell["policy_params"], cell["phases"]],
                    "subtask": headline["subtask"],
                    "metric": headline["metric"],
                    "filter": headline["filter"],
                    "unit": unit,
                    "higher_is_better": headline["higher_is_better"],
                    "documents": headline["samples"],
                    "lanes": 0 if own is None else len(np.unique(own.lane)),
                    "paired": partner[0] != "",
                    "plans": 1,
                    "cell_ids": cell["cell_id"],
                    "plan_sd": math.nan,
                    "difference_plan_sd": math.nan,
                }
                | flat("score", score)
                | flat("difference", difference)
                | _repeated(own, other, is_vanilla=cell["policy"] == "vanilla")
                | {"difference_pad": difference.pad}
                | _changed(own, None if headline["corpus"] else other)
                | times
                | {"timing_final": latency.is_final(cell, times)}
                | flat("active_experts", active.get(stream, NO_ESTIMATE))
                | occupied.get(stream, {"live_rows": float("nan"), "full_steps": float("nan")})
                | flat("changed", changed.get(stream, NO_ESTIMATE))
                | flat("prompt_changed", prompt_changed.get(stream, NO_ESTIMATE))
                | fidelity.get(key, _NO_FIDELITY)
                | _guard_columns(guard_of.get(key))
                | _drift_columns(drift_of.get(key, {}))
            )
    frame = pd.DataFrame(rows)
    order = sorted(range(len(frame)), key=lambda i: _row_order(rows[i]))
    return frame.iloc[order].reset_index(drop=True)


# The columns of a cell (`store.cell_columns`, which declares them) that tables show or that are averaged over subtasks.
# A name that is not declared there fails at the first row.
_CELL_FIELDS = (
    *("cell_id", "pair_id", "study", "model", "task", "mixing", "batch_size", "batching", "limit", "seed", "backend"),
    *("plan_seed",),
    *("dtype", "device", "policy", "policy_params", "policy_label", "phases", "num_experts", "top_k"),
    *("timed_active_experts", "match_active", "selection_us", "layers", "num_layers"),
    *("timed_context", "prefill_active_experts", "prefill_tokens", "precision", "precision_reached", "busy"),
    *("step_gb", "gb_s", "copy_gb_s", "s_mbu", "j_per_token", "vanilla_j_per_token"),
)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The scores of one (cell, subtask).

    They are arrays, because a data frame of a few rows takes longer to make than the statistics take.
    """

    document: np.ndarray
    attempt: np.ndarray
    """Number of the response as in `attempts`; responses with the same number are paired between cells."""
    lane: np.ndarray
    score: Array
    rows: pd.DataFrame
    """The samples of all cells."""
    at: np.ndarray
    """Positions of this subtask's samples in `rows`."""

    def texts(self) -> tuple[list[str], list[str]]:
        """(responses, reference texts), one of each per document."""
        responses, references = (self.rows[name].array for name in ("filtered", "target"))
        return responses.take(self.at).tolist(), references.take(self.at).tolist()

    @cached_property
    def repeats(self) -> int:
        """Number of scored responses per document."""
        return len(self.document) // max(len(np.unique(self.document)), 1)

    def names(self, at: np.ndarray | slice = slice(None)) -> np.ndarray | None:
        """The document of each row, to cluster by; None if each document has one response."""
        return self.document[at] if self.repeats > 1 else None


def _samples(rows: pd.DataFrame) -> dict[tuple[str, str], _Samples]:
    document, lane, score = rows["doc_id"].to_numpy(), rows["lane"].to_numpy(), rows["score"].to_numpy(dtype=float)
    attempt = rows["attempt"].to_numpy()
    return {
        key: _Samples(document=document[at], attempt=attempt[at], lane=lane[at], score=score[at], rows=rows, at=at)
        for key, at in rows.groupby(["cell_id", "subtask"], observed=True).indices.items()
    }


def _row_order(row: Row) -> tuple[object, ...]:
    policy = policy_order(row["policy"], row["policy_params"], row["phases"])
    return row["setting"], row["task"], row["subtask"], row["batch_size"], *policy, row["cell_id"]


def _headlines(records: Records) -> dict[str, list[Row]]:
    """The headline metric of each subtask, by cell."""
    chosen = records.metrics[records.metrics["headline"].astype(bool)].drop_duplicates(["cell_id", "subtask"])
    chosen = chosen.assign(value=chosen["value"].astype(float))  # null stands for a value that is not finite
    by_cell: dict[str, list[Row]] = {}
    for row in chosen.to_dict("records"):
        by_cell.setdefault(row["cell_id"], []).append(row)
    return by_cell


def _guard_columns(guard: guards.Guard | None) -> dict[str, float | str]:
    names = ("new_tokens", "new_tokens_difference", "length_stop_share", "length_stop_share_difference")
    columns: dict[str, float | str] = {}
    for name in names:
        columns |= flat(name, NO_ESTIMATE if guard is None else getattr(guard, name))
    return columns | {"guard": guards.NOTHING_TO_COMPARE if guard is None else guard.flag}


def _drift_columns(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name in drift.COLUMNS:
        columns |= flat(name, estimates.get(name, NO_ESTIMATE))
    return columns


def _fidelity(records: Records) -> dict[tuple[str, str], dict[str, float]]:
    """KL divergence, agreement and retained router mass of each (cell, subtask), over tokens, clustered by lane."""
    keys = ["cell_id", "subtask", "lane"]
    lanes = records.fidelity.groupby(keys, observed=True)[["kl", "agreeing", "tokens"]].sum().reset_index()
    kl, agreement = ratios(lanes, "kl", "tokens"), ratios(lanes, "agreeing", "tokens")
    retained, prompt_retained = retained_share(records), prompt_retained_share(records)
    return {
        key: flat("kl", kl[key].scaled(1000))
        | flat("agreement", agreement[key].scaled(100))
        | flat("retained", retained.get(key, NO_ESTIMATE))
        | flat("prompt_retained", prompt_retained.get(key, NO_ESTIMATE))
        for key in kl
    }


def _times(own: Array, pairs: Array, policy: str, integrated: latency_model.Integrated | None) -> dict[str, object]:
    """The columns of times and speed-ups.

    Args:
        own: Median step of each window of the cell, `[W]` ms.
        pairs: Vanilla's and the policy's median step of the windows that timed both, `[W, 2]` ms.
        policy: Name of the policy.
        integrated: Times over the whole run by the latency model; None if it could not be fitted.
    """
    step = vanilla = latency.mean_step(own) if len(own) else NO_ESTIMATE
    speedup = Estimate(value=1.0) if len(own) and policy == "vanilla" else NO_ESTIMATE
    if len(pairs):
        step, vanilla = latency.mean_step(pairs[:, 1]), latency.mean_step(pairs[:, 0])
        speedup = latency.speedup(pairs)
    columns: dict[str, object] = {"windows": len(own)}
    for name, estimate in (("step_ms", step), ("vanilla_step_ms", vanilla), ("speedup", speedup)):
        columns |= flat(name, estimate)
    for name, value in latency_model.columns(integrated).items():
        columns |= flat(name, value) if isinstance(value, Estimate) else {name: value}
    run_speedup = None if integrated is None else integrated.speedup
    return columns | {"speedup_disagrees": latency_model.disagrees(speedup, run_speedup)}


def _count_sentences(counts: dict[tuple[str, str], Array], wanted: Mapping[tuple[str, str], _Samples | None]) -> None:
    """Add the BLEU statistics of the cells that `counts` lacks, one row per sample."""
    for key, part in wanted.items():
        if part is not None and key not in counts:
            counts[key] = bleu.sentence_counts(*part.texts())


def _units(records: Records) -> dict[str, str]:
    """Unit of each subtask's score: BLEU; % if all scores of documents lie in 0..1; otherwise the metric's own."""
    headlines = records.metrics[records.metrics["headline"].astype(bool)].drop_duplicates("subtask")
    scores = records.samples["score"].astype(float)
    wide = set(records.samples.loc[scores.notna() & ~scores.between(0.0, 1.0), "subtask"])
    units = {}
    for subtask, metric, corpus in headlines[["subtask", "metric", "corpus"]].itertuples(index=False):
        units[subtask] = "BLEU" if corpus and metric == "bleu" else "own" if corpus or subtask in wide else "%"
    return units


def _scores(
    headline: Row,
    unit: str,
    own: _Samples | None,
    other: _Samples | None,
    own_counts: Array | None,
    other_counts: Array | None,
) -> tuple[Estimate, Estimate]:
    """The score and its paired difference to vanilla.

    Args:
        headline: The headline metric of the subtask.
        unit: BLEU, % or own, as of `_units`.
        own: Samples of the cell; None if it has none.
        other: Samples of its vanilla partner; None if it has none.
        own_counts: BLEU statistics of the cell's samples, for a metric in BLEU.
        other_counts: Those of the partner.

    Returns:
        (score, difference), in points (percent or BLEU) or the metric's own unit.
    """
    if own is None:
        return Estimate(value=headline["value"] * (100 if unit == "%" else 1)), NO_ESTIMATE
    lanes = own.lane
    mine, theirs = (np.empty(0, int), np.empty(0, int)) if other is None else _matched(own, other)
    if other is not None and len(mine) < max(len(lanes), len(other.lane)):
        log.warning("%d of %d documents have a vanilla partner; only they are compared", len(mine), len(lanes))
    if own_counts is not None:
        score, difference = bleu.corpus_bleu(own_counts, lanes), NO_ESTIMATE
        if len(mine) and other_counts is not None:
            difference = bleu.paired_bleu_difference(own_counts[mine], other_counts[theirs], lanes[mine])
        return score, difference
    if headline["corpus"]:
        # a corpus metric other than BLEU has no scores of documents to estimate a variance from
        return Estimate(value=headline["value"]), NO_ESTIMATE
    values = own.score
    vanilla = np.empty(0) if other is None else other.score[theirs]
    if unit == "own":
        score = statistics.mean_of(values, lanes, own.names())
        changes = values[mine] - vanilla
        return score, statistics.mean_of(changes, lanes[mine], own.names(mine)) if len(mine) else NO_ESTIMATE
    score = statistics.mean(values, lanes, own.names()).scaled(100)
    if not len(mine):
        return score, NO_ESTIMATE
    return score, statistics.paired_difference(values[mine], vanilla, lanes[mine], own.names(mine)).scaled(100)


def _repeated(own: _Samples | None, other: _Samples | None, *, is_vanilla: bool) -> dict[str, float]:
    """The number of responses per document, and pass@k where there are several that are scored 0 or 1."""
    several = own is not None and own.repeats > 1
    pass_at_k, difference = NO_ESTIMATE, NO_ESTIMATE
    if own is not None and several and np.isin(own.score, (0.0, 1.0)).all():
        k = own.repeats
        values = statistics.pass_values(own.score, own.document, k)
        pass_at_k = statistics.mean(values, own.lane, own.document).scaled(100)
        if is_vanilla:
            difference = Estimate(value=0.0)
        elif other is not None and other.repeats == k and np.isin(other.score, (0.0, 1.0)).all():
            mine, theirs = _matched(own, other)
            vanilla = statistics.pass_values(other.score, other.document, k)[theirs]
            difference = statistics.paired_difference(values[mine], vanilla, own.lane[mine], own.document[mine]).scaled(
                100
            )
    repeats = {"document_repeats": float(own.repeats) if own is not None else math.nan}
    return repeats | flat("pass_at_k", pass_at_k) | flat("pass_at_k_difference", difference)


def _changed(own: _Samples | None, other: _Samples | None) -> dict[str, float]:
    """How many documents score higher and lower than with vanilla, and McNemar's test of these numbers."""
    if own is None or other is None:
        return {"better": math.nan, "worse": math.nan, "p_mcnemar": math.nan}
    mine, theirs = _matched(own, other)
    # the mean score of several responses is not 0 or 1, so that McNemar's test does not apply
    if own.repeats > 1:
        change = statistics.per_document(own.score[mine] - other.score[theirs], own.document[mine])
        counts = {"better": int((change > statistics.FLAT).sum()), "worse": int((change < -statistics.FLAT).sum())}
        return counts | {"p_mcnemar": math.nan}
    pairs = statistics.discordance(own.score[mine], other.score[theirs])
    return {"better": pairs.better, "worse": pairs.worse, "p_mcnemar": pairs.p_value}


def _matched(own: _Samples, other: _Samples) -> tuple[np.ndarray, np.ndarray]:
    """(positions in `own`, positions in `other`) of the responses that both have, in the same order."""
    # the usual case, where both have the same responses: intersect1d would sort them for each cell
    if np.array_equal(own.attempt, other.attempt) and (np.diff(own.attempt) > 0).all():
        return np.arange(len(own.attempt)), np.arange(len(own.attempt))
    _, mine, theirs = np.intersect1d(own.attempt, other.attempt, return_indices=True)
    return mine, theirs


def _check_value(cell: Row, headline: Row, unit: str, score: Estimate) -> None:
    """Warn if a stored metric is not what its samples give: one of the two was changed."""
    stored = headline["value"] * (100 if unit == "%" else 1)
    if abs(stored - score.value) > 1e-6:
        log.warning(
            "cell %s, %s: %s is %.6g on record but %.6g from its samples",
            cell["cell_id"], headline["subtask"], headline["metric"], stored, score.value,
        )  # fmt: skip


def flat(name: str, estimate: Estimate) -> dict[str, float]:
    """The five columns of an estimate.

    Args:
        name: Name of the estimate.
        estimate: Its value, with an interval if there is one.

    Returns:
        The columns `name`, `name_low`, `name_high`, `name_se` and `name_df`; NaN where the estimate has no value.
    """
    parts = {"": estimate.value, "_low": estimate.low, "_high": estimate.high, "_se": estimate.se, "_df": estimate.df}
    return {f"{name}{suffix}": float("nan") if part is None else float(part) for suffix, part in parts.items()}


_NO_FIDELITY = {
    name: value
    for quantity in ("kl", "agreement", "retained", "prompt_retained")
    for name, value in flat(quantity, NO_ESTIMATE).items()
}
