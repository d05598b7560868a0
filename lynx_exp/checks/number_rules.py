"""Rules on what was computed from the rows: samples from responses, metrics from samples, means from both. The
formulas are written down here a second time, apart from the code that wrote the numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lynx_exp.checks.findings import some
from lynx_exp.checks.folder_content import Columns, Content
from lynx_exp.checks.lane_rules import rows_of

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

CLOSE = 1e-9
"""Relative: sums taken in another order."""
FILE = "samples.parquet"
COPIED = ("subtask", "doc_id", "lane", "slot", "prompt_hash", "new_tokens", "finish_reason", "response")
"""Columns of a sample that are its response's."""
BLEU = "bleu"
"""The corpus metric that its texts give again at once; others take --rescore."""


def check_samples(content: Content) -> None:
    """One sample a document, of a response that is that document's."""
    samples, responses = content.table("samples"), content.table("responses")
    if samples is None or responses is None:
        return
    answered = set(zip(responses["subtask"], responses["doc_id"].tolist(), strict=True))
    found = Counter(zip(samples["subtask"], samples["doc_id"].tolist(), strict=True))
    for documents, what in (
        (sorted(answered - set(found)), "no sample of"),
        (sorted(set(found) - answered), "samples of"),
        (sorted(key for key, times in found.items() if times > 1), "several samples of"),
    ):
        if documents:
            names = some([f"{subtask} {doc}" for subtask, doc in documents])
            content.add("samples", FILE, f"one sample of each of {len(answered)} documents", f"{what} {names}")
    if "request" in samples:  # older cells have none
        _check_origin(content, samples, responses)


def _check_origin(content: Content, samples: Columns, responses: Columns) -> None:
    at = {key: row for row, key in enumerate(_keys(content, responses))}
    rows = np.array([at.get(key, -1) for key in _keys(content, samples)], dtype=np.int64)
    names = [f"{subtask} {doc}" for subtask, doc in zip(samples["subtask"], samples["doc_id"], strict=True)]
    if (rows < 0).any():
        lost = [names[number] for number in np.flatnonzero(rows < 0)]
        content.add("samples", FILE, "a request that was answered", f"none such at {some(lost)}")
    known = np.flatnonzero(rows >= 0)
    for column in COPIED:
        if column in samples:
            wrong = known[samples[column][known] != responses[column][rows[known]]]
            if len(wrong):
                found = f"another at {some([names[number] for number in wrong])}"
                content.add("samples", FILE, f"{column} as in the response that was scored", found)


def _keys(content: Content, table: Columns) -> Iterator[tuple[str, int]]:
    """(stream, request) of each row: a mix counts its requests through."""
    mixed = content.info.get("mixing") is not None
    for subtask, request in zip(table["subtask"], table["request"].tolist(), strict=True):
        yield "" if mixed else subtask, request


def check_scores(content: Content) -> list[str]:
    """Metrics from the samples' scores; names of those that only --rescore can give again."""
    samples, left = content.table("samples"), []
    if samples is None or "metrics.json" not in content.values:
        return []
    metrics = content.values["metrics.json"]["metrics"]
    scores = np.array([json.loads(text) for text in samples["scores"]], dtype=object)
    headlines = [metric["subtask"] for metric in metrics if metric["headline"]]
    if sorted(headlines) != sorted(set(samples["subtask"])):
        expected = f"one headline for each of {', '.join(sorted(set(samples['subtask'])))}"
        content.add("scores", "metrics.json", expected, some(sorted(headlines)) or "none")
    for metric in metrics:
        own = samples["subtask"] == metric["subtask"]
        name = f"{metric['subtask']} {metric['metric']},{metric['filter']}"
        if metric["samples"] != own.sum():
            content.add("scores", "metrics.json", f"{own.sum()} samples of {name}", metric["samples"])
        key = f"{metric['metric']},{metric['filter']}"
        if metric["corpus"]:
            if metric["metric"] == BLEU and metric["headline"]:
                _check_value(content, name, [_bleu(samples["filtered"][own], samples["target"][own])], metric["value"])
            else:
                left.append(metric["metric"])
            continue
        values = np.array([row.get(key, math.nan) for row in scores[own]], dtype=float)
        _check_value(content, name, _aggregates(values), metric["value"])
        if metric["headline"]:
            _check_headline(content, name, samples["score"][own].astype(float), values)
            _check_repeats(content, name, samples, own)
    return left


def _aggregates(values: NDArray[np.float64]) -> list[float]:
    """What lm-eval's tasks make of scores, the usual one first."""
    known = values[~np.isnan(values)]
    if not len(known):
        return [math.nan]
    return [float(values.mean()), float(known.mean()), float(np.median(values))]


def _check_value(content: Content, name: str, possible: Sequence[float], value: float | None) -> None:
    """A metric that is no finite number is null."""
    if not any(_same(wanted, value) for wanted in possible):
        content.add("scores", "metrics.json", f"{name} {possible[0]:.10g}, of the samples' scores", value)


def _check_headline(content: Content, name: str, score: Floats, values: Floats) -> None:
    wrong = np.flatnonzero(~((score == values) | (np.isnan(score) & np.isnan(values))))
    if len(wrong):
        found = f"{score[wrong[0]]}{f' and {len(wrong) - 1} more that differ' if len(wrong) > 1 else ''}"
        content.add("scores", "samples.parquet", f"score {values[wrong[0]]}, which scores has of {name}", found)


def _check_repeats(content: Content, name: str, samples: Columns, own: NDArray[np.bool_]) -> None:
    """That a document's score is the mean of those of its responses, which are as many as were asked for. A task that
    votes among them has none of any document."""
    expected = content.config["task"].get("repeats")
    rows = np.flatnonzero(own) if "repeat_scores" in samples else np.array([], int)
    if all(samples["repeat_scores"][row] is None for row in rows):
        return
    for row in rows:
        each, score = samples["repeat_scores"][row], samples["score"][row]
        if each is None or (expected is not None and len(each) != expected):
            many = "as many" if expected is None else expected
            content.add(
                "scores", FILE, f"{many} repeat_scores of a document of {name}", 0 if each is None else len(each)
            )
            return
        if not _same(float(np.mean(each)), float(score)):
            content.add("scores", FILE, f"score {np.mean(each):.10g} of {name}, the mean of its repeat_scores", score)
            return


def _same(wanted: float | None, value: float | None) -> bool:
    if wanted is None or not math.isfinite(wanted):
        return value is None
    return value is not None and math.isclose(wanted, value, rel_tol=CLOSE, abs_tol=CLOSE)


def _bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    from analysis.bleu import bleu_of_counts

    pairs = zip(hypotheses, references, strict=True)
    return bleu_of_counts(np.sum([_sentence(mine, theirs) for mine, theirs in pairs], axis=0))


@lru_cache(maxsize=200_000)
def _sentence(hypothesis: str, reference: str) -> tuple[float, ...]:
    """Cells of a study share most of their sentences."""
    from analysis.bleu import sentence_counts

    return tuple(sentence_counts([hypothesis], [reference])[0].tolist())


def check_numbers(content: Content) -> None:
    """The means over responses, steps and fidelity, over the cell and by subtask."""
    responses, steps = content.table("responses"), content.table("steps")
    if responses is None or steps is None or "metrics.json" not in content.values:
        return
    metrics, fidelity = content.values["metrics.json"], content.table("fidelity")
    batch = content.info["batch_size"]
    everything = np.ones(len(responses["request"]), bool), np.ones(len(steps["lane"]), bool)
    _check_means(content, "", _means(responses, steps, *everything, batch), metrics)
    if fidelity is not None:
        _check_means(content, "", _fidelity(fidelity, np.ones(len(fidelity["kl"]), bool)), metrics)
    for stream, own in rows_of(content, responses):
        names = dict.fromkeys([stream, *responses["subtask"][own]])
        for name in names:
            given = metrics["by_subtask"].get(name)
            if given is None:
                content.add("numbers", "metrics.json", f"numbers of {name}", "none")
                continue
            rows = own if name == stream else responses["subtask"] == name
            _check_means(content, name, _means(responses, steps, rows, steps["subtask"] == name, batch), given)
            if fidelity is not None:
                _check_means(content, name, _fidelity(fidelity, fidelity["subtask"] == name), given)


def _means(responses: Columns, steps: Columns, rows: Bools, taken: Bools, batch_size: int) -> dict[str, float | None]:
    lane, step, live, scored = (
        steps[name][taken].astype(np.int64) for name in ("lane", "step", "live_rows", "scored_rows")
    )
    active = steps["active_experts"][taken]
    _, code = np.unique(steps["subtask"][taken].astype(str), return_inverse=True)
    _, once = np.unique(np.stack([code, lane, step]), axis=1, return_index=True)
    generated = rows & (responses["finish_reason"] != "scored")
    return {
        "active_experts": _mean(np.repeat(active, scored)),
        "active_experts_full": _mean(active[live == batch_size]),
        "live_rows": _mean(np.repeat(live[once], scored[once])),
        "full_steps": _mean(live[once] == batch_size),
        "scored_share": float(scored[once].sum() / live[once].sum()) if live[once].sum() else None,
        "new_tokens_mean": _mean(responses["new_tokens"][generated]),
        "length_stop_share": _mean(responses["finish_reason"][generated] == "length"),
    }


def _fidelity(fidelity: Columns, own: Bools) -> dict[str, float | None]:
    tokens = int(fidelity["tokens"][own].sum())
    summed = {name: float(fidelity[name][own].sum()) for name in ("kl", "agreeing")}
    return {
        "kl": summed["kl"] / tokens if tokens else None,
        "agreement": summed["agreeing"] / tokens if tokens else None,
    }


def _mean(values: NDArray[np.number] | Bools) -> float | None:
    return float(values.mean()) if len(values) else None


def _check_means(
    content: Content, subtask: str, wanted: Mapping[str, float | None], given: Mapping[str, float | None]
) -> None:
    of = f" of {subtask}" if subtask else ""
    for name, value in wanted.items():
        if name not in given:
            content.add("numbers", "metrics.json", f"{name}{of}", "none")
        elif not _same(value, given[name]):
            shown = "none" if value is None else f"{value:.10g}"
            content.add("numbers", "metrics.json", f"{name} {shown}{of}, of its rows", given[name])
