"""Records -> one row per (cell, subtask) with every estimate."""

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


def results(records: Records) -> pd.DataFrame:
    """One row per (cell, subtask), vanilla first, then no_drop, then the other policies by name and parameters.

    Names as in the records, plus `setting`, `series` (policy label, with the phases unless decode), `unit` of the score
    (%, BLEU, or own), `documents`, `lanes`, `paired` (a vanilla partner exists), and those of `plans.pooled`, of one
    plan. An estimate X is five columns: `X`, `X_low`, `X_high` (95 % interval), `X_se` and `X_df`; `difference_pad` is
    `Estimate.pad` of the difference. Estimates are `score` and `difference` (in
    points: percent, or BLEU), `step_ms` (a decode step), `vanilla_step_ms` (vanilla's on the same steps), `speedup`
    (the latter over the former; 1 for vanilla), `run_ms_per_token`, `run_speedup` and `tokens_per_s` (integrated over
    all steps of the run, `analysis.latency_model`), `active_experts`
    (per layer, of the steps that made the scored tokens; of a mix those of the stream that its subtasks share; beside
    it `live_rows`, the rows of those steps, and `full_steps`, the share 0..1 of steps with every slot taken), `changed`
    and `prompt_changed` (share 0..1 of the assignments of decode steps and of prompts that the policy changed; the
    latter where it acts there),
    `kl` (divergence from vanilla, millinats per token), `agreement` (% of tokens), `retained` and `prompt_retained`
    (share of the router's top-k mass that runs, of tokens fed in decode steps and of prompts), and where something is
    generated `new_tokens` (a response),
    `length_stop_share` (0..1, cut off by the length limit) and their paired differences to vanilla,
    `new_tokens_difference` and `length_stop_share_difference`. Missing numbers are NaN.
    Estimates of length drift are `drift.COLUMNS`: tokens of thoughts and answers, the share of thoughts that were cut,
    and tokens and a lane's seconds for each document that is solved.
    `us_per_expert`: an estimate, of the fit that the cell shares: microseconds for each further active expert of a
    layer; `fixed_ms`: what its steps cost besides rows, experts and positions, a policy's selection included; what the
    hardware gave as in the cells.
    `document_repeats`: responses to a document, of which the score is the mean (avg@k); `pass_at_k`, of 0/1 scores:
    that of all of them, with `pass_at_k_difference`.
    `windows`: places that were timed; `tpot_ms`: (E2E - TTFT) / (n - 1) of a request in its lane, integrated, median
    over requests; `latency_residual`: what the latency model misses a timed step by, median, in percent;
    `timing_final`: whether a time may be ranked (precision reached, machine not busy); `speedup_disagrees`: whether
    `speedup` and `run_speedup` differ beyond the errors of both (None: not known).
    `better` and `worse` count the
    documents that score higher and lower than vanilla's; `p_mcnemar` is McNemar's test of the two, which takes
    documents for independent (NaN where scores are not 0 or 1). `guard` names how responses leave vanilla's band:
    "longer", "shorter", "more cut off", "fewer cut off", joined by commas; "" inside it, "-" where there is nothing to
    compare (see `analysis.guards`).
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
    guarded = guards.guards(records, partners)
    integrated = latency_model.integrate(records)
    drifted = drift.drift(records, partners, {cell: known.tokens_per_s for cell, known in integrated.items()})
    counts: dict[tuple[str, str], Array] = {}
    rows = []
    for cell in records.cells.to_dict("records"):
        own_ms = steps_ms["vanilla" if cell["policy"] == "vanilla" else "policy"].get(cell["cell_id"], np.empty(0))
        paired = pairs.get(cell["cell_id"], np.empty((0, 2)))
        times = _times(own_ms, paired, cell["policy"], integrated.get(cell["cell_id"]))
        for headline in headlines.get(cell["cell_id"], []):
            key = (cell["cell_id"], headline["subtask"])
            partner = (partners[cell["cell_id"]], headline["subtask"])
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
                | {"timing_final": _is_final(cell)}
                | flat("active_experts", active.get(stream, NO_ESTIMATE))
                | occupied.get(stream, {"live_rows": float("nan"), "full_steps": float("nan")})
                | flat("changed", changed.get(stream, NO_ESTIMATE))
                | flat("prompt_changed", prompt_changed.get(stream, NO_ESTIMATE))
                | fidelity.get(key, _NO_FIDELITY)
                | _guard_columns(guarded.get(key))
                | _drift_columns(drifted.get(key, {}))
            )
    frame = pd.DataFrame(rows)
    order = sorted(range(len(frame)), key=lambda i: _row_order(rows[i]))
    return frame.iloc[order].reset_index(drop=True)


# A choice, not a declaration: of all columns of a cell (`store.cell_columns`) those that rows of tables show or that
# are averaged. A name that is not declared there fails at the first row.
_CELL_FIELDS = (
    *("cell_id", "pair_id", "study", "model", "task", "mixing", "batch_size", "batching", "limit", "seed", "backend"),
    *("plan_seed",),
    *("dtype", "device", "policy", "policy_params", "policy_label", "phases", "num_experts", "top_k"),
    *("timed_active_experts", "match_active", "selection_us", "layers", "num_layers"),
    *("timed_context", "prefill_active_experts", "prefill_tokens", "precision_reached", "busy"),
    *("step_gb", "gb_s", "copy_gb_s", "s_mbu", "j_per_token", "vanilla_j_per_token"),
)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """Of one (cell, subtask), as arrays: a frame of a few rows costs more than what is done with it."""

    document: np.ndarray
    attempt: np.ndarray
    """As of `attempts`: what is paired."""
    lane: np.ndarray
    score: Array
    rows: pd.DataFrame
    """Of all cells."""
    at: np.ndarray
    """Its own among them."""

    def texts(self) -> tuple[list[str], list[str]]:
        """Answers and references."""
        answers, references = (self.rows[name].array for name in ("filtered", "target"))
        return answers.take(self.at).tolist(), references.take(self.at).tolist()

    @cached_property
    def repeats(self) -> int:
        """Responses to a document that are scored."""
        return len(self.document) // max(len(np.unique(self.document)), 1)

    def names(self, at: np.ndarray | slice = slice(None)) -> np.ndarray | None:
        """Documents of rows, where each has several."""
        return self.document[at] if self.repeats > 1 else None


def _samples(rows: pd.DataFrame) -> dict[tuple[str, str], _Samples]:
    document, lane, score = rows["doc_id"].to_numpy(), rows["lane"].to_numpy(), rows["score"].to_numpy(dtype=float)
    attempt = rows["attempt"].to_numpy()
    return {
        key: _Samples(document=document[at], attempt=attempt[at], lane=lane[at], score=score[at], rows=rows, at=at)
        for key, at in rows.groupby(["cell_id", "subtask"], observed=True).indices.items()
    }


def _is_final(cell: Row) -> bool:
    """Whether what was timed may be ranked: as precise as was asked for, on a machine with nothing else to do. True
    where nothing was timed, and for vanilla, to which no ratio belongs."""
    missed = cell["precision_reached"] is not None and not pd.isna(cell["precision_reached"])
    missed = missed and not bool(cell["precision_reached"])
    busy = cell["busy"] is not None and not pd.isna(cell["busy"]) and bool(cell["busy"])
    return cell["policy"] == "vanilla" or not (missed or busy)


def _row_order(row: Row) -> tuple[object, ...]:
    policy = policy_order(row["policy"], row["policy_params"], row["phases"])
    return row["setting"], row["task"], row["subtask"], row["batch_size"], *policy, row["cell_id"]


def _headlines(records: Records) -> dict[str, list[Row]]:
    chosen = records.metrics[records.metrics["headline"].astype(bool)].drop_duplicates(["cell_id", "subtask"])
    chosen = chosen.assign(value=chosen["value"].astype(float))  # null where it is no finite number
    found: dict[str, list[Row]] = {}
    for row in chosen.to_dict("records"):
        found.setdefault(row["cell_id"], []).append(row)
    return found


def _guard_columns(guard: guards.Guard | None) -> dict[str, float | str]:
    names = ("new_tokens", "new_tokens_difference", "length_stop_share", "length_stop_share_difference")
    columns: dict[str, float | str] = {}
    for name in names:
        columns |= flat(name, NO_ESTIMATE if guard is None else getattr(guard, name))
    return columns | {"guard": guards.NOTHING_TO_COMPARE if guard is None else guard.flag}


def _drift_columns(found: Mapping[str, Estimate]) -> dict[str, float]:
    columns: dict[str, float] = {}
    for name in drift.COLUMNS:
        columns |= flat(name, found.get(name, NO_ESTIMATE))
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
    """`own` [W]: steps of the cell's windows in ms, `pairs` [W, 2]: vanilla's and the policy's."""
    step = vanilla = latency.mean_step(own) if len(own) else NO_ESTIMATE
    speedup = Estimate(value=1.0) if len(own) and policy == "vanilla" else NO_ESTIMATE
    if len(pairs):
        step, vanilla = latency.mean_step(pairs[:, 1]), latency.mean_step(pairs[:, 0])
        speedup = latency.speedup(pairs)
    found: dict[str, object] = {"windows": len(own)}
    for name, estimate in (("step_ms", step), ("vanilla_step_ms", vanilla), ("speedup", speedup)):
        found |= flat(name, estimate)
    for name, value in latency_model.columns(integrated).items():
        found |= flat(name, value) if isinstance(value, Estimate) else {name: value}
    run_speedup = None if integrated is None else integrated.speedup
    return found | {"speedup_disagrees": latency_model.disagrees(speedup, run_speedup)}


def _count_sentences(counts: dict[tuple[str, str], Array], wanted: Mapping[tuple[str, str], _Samples | None]) -> None:
    """Fill in the sentence statistics of cells not seen yet, rows in the order of the samples."""
    for key, part in wanted.items():
        if part is not None and key not in counts:
            counts[key] = bleu.sentence_counts(*part.texts())


def _units(records: Records) -> dict[str, str]:
    """Unit of each subtask's score: BLEU, % where all documents score 0..1, else the metric's own."""
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
    """Score and difference to vanilla, in points (or the metric's own unit)."""
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
    """Responses to a document, and pass@k of all of them, where there are several, each scored 0 or 1."""
    several = own is not None and own.repeats > 1
    found, difference = NO_ESTIMATE, NO_ESTIMATE
    if own is not None and several and np.isin(own.score, (0.0, 1.0)).all():
        k = own.repeats
        values = statistics.pass_values(own.score, own.document, k)
        found = statistics.mean(values, own.lane, own.document).scaled(100)
        if is_vanilla:
            difference = Estimate(value=0.0)
        elif other is not None and other.repeats == k and np.isin(other.score, (0.0, 1.0)).all():
            mine, theirs = _matched(own, other)
            before = statistics.pass_values(other.score, other.document, k)[theirs]
            difference = statistics.paired_difference(values[mine], before, own.lane[mine], own.document[mine]).scaled(
                100
            )
    repeats = {"document_repeats": float(own.repeats) if own is not None else math.nan}
    return repeats | flat("pass_at_k", found) | flat("pass_at_k_difference", difference)


def _changed(own: _Samples | None, other: _Samples | None) -> dict[str, float]:
    if own is None or other is None:
        return {"better": math.nan, "worse": math.nan, "p_mcnemar": math.nan}
    mine, theirs = _matched(own, other)
    if own.repeats > 1:
        change = statistics.per_document(own.score[mine] - other.score[theirs], own.document[mine])
        counts = {"better": int((change > statistics.FLAT).sum()), "worse": int((change < -statistics.FLAT).sum())}
        return counts | {"p_mcnemar": math.nan}
    found = statistics.discordance(own.score[mine], other.score[theirs])
    return {"better": found.better, "worse": found.worse, "p_mcnemar": found.p_value}


def _matched(own: _Samples, other: _Samples) -> tuple[np.ndarray, np.ndarray]:
    """Row positions of the responses that both hold, in the same order."""
    if np.array_equal(own.attempt, other.attempt) and (np.diff(own.attempt) > 0).all():
        return np.arange(len(own.attempt)), np.arange(len(own.attempt))
    _, mine, theirs = np.intersect1d(own.attempt, other.attempt, return_indices=True)
    return mine, theirs


def _check_value(cell: Row, headline: Row, unit: str, score: Estimate) -> None:
    stored = headline["value"] * (100 if unit == "%" else 1)
    if abs(stored - score.value) > 1e-6:
        log.warning(
            "cell %s, %s: %s is %.6g on record but %.6g from its samples",
            cell["cell_id"], headline["subtask"], headline["metric"], stored, score.value,
        )  # fmt: skip


def flat(name: str, estimate: Estimate) -> dict[str, float]:
    """The five columns of an estimate; NaN for what it lacks."""
    parts = {"": estimate.value, "_low": estimate.low, "_high": estimate.high, "_se": estimate.se, "_df": estimate.df}
    return {f"{name}{suffix}": float("nan") if part is None else float(part) for suffix, part in parts.items()}


_NO_FIDELITY = {
    name: value
    for quantity in ("kl", "agreement", "retained", "prompt_retained")
    for name, value in flat(quantity, NO_ESTIMATE).items()
}
