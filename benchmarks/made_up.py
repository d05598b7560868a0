"""Writes invented cells of every kind that figures use, with any number of rows, to time the readers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.bleu import bleu_of_counts, sentence_counts
from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.tables import BREAKDOWN, FIDELITY, PREFILL, RESPONSES, SAMPLES, STEPS, TIMING, TOKENS

TASKS, BATCHES = ("gsm8k", "humaneval", "wmt16"), (4, 16, 64)
EXPERTS, TOP_K, LAYERS, STEPS_OF_A_LANE = 128, 8, 48, 20
WINDOWS, REPEATS, STEPS_OF_A_WINDOW = 12, 2, 4
TOKEN_LAYERS = 8
"""Of a table of tokens: those of a real model have a row in each of 48, this one has its rows in more lanes."""
SECTIONS = ("attention", "router", "policy", "experts", "rest")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell."""

    policy: str
    params: dict[str, Any] = field(default_factory=dict)
    keep: float = 1.0
    """Share of vanilla's active experts."""
    task: str = TASKS[0]
    batch: int = 16
    phases: str = "decode"
    layers: str | None = None
    mixing: str | None = None
    context: int | None = None
    """Sections of a step were timed with so many tokens before it."""
    prefill: bool = False
    """The prefill was timed."""
    tokens: int = 0
    """Rows of its table of tokens."""


POLICIES = (
    *(Point(policy="vanilla"), Point(policy="no_drop"), Point(policy="top_k", params={"k": 1}, keep=0.6)),
    *(Point(policy="lynx", params={"alpha": alpha, "beta": 2}, keep=keep) for alpha, keep in ((3.0, 0.8), (1.0, 0.6))),
    Point(policy="lynx_v1_latency", params={"keep_experts": 32}, keep=0.4),
    *(Point(policy="deny_rank", params={"rank": rank, "mode": "replace"}) for rank in (0, 1)),
    *(Point(policy="keep_ranks", params={"ranks": ranks}, keep=0.5 + 0.1 * ranks) for ranks in (1, 4)),
)


def points(tokens: int) -> Iterator[Point]:
    """`tokens`: rows of tokens of all cells of a task that write them, together, for each figure of tokens."""
    for task in TASKS:
        for batch in BATCHES:
            for one in POLICIES:
                counted = tokens if one.policy == "vanilla" and batch == 16 else 0
                yield Point(**vars(one) | {"task": task, "batch": batch, "tokens": counted})
        for fraction in (0.05, 0.2, 0.5):
            for phases in ("prefill", "decode", "both"):
                yield _reassign(task, fraction, phases=phases)
        for gate in ("high", "low"):
            for threshold in (0.001, 0.003, 0.006):
                yield _reassign(task, 0.5, gate=gate, threshold=threshold)
        for first in range(0, LAYERS, 12):
            yield _reassign(task, 0.5, layers=f"{first}:{first + 12}")
            yield _reassign(task, 0.5, layers=f"0:{first},{first + 12}:" if first else "12:")
        for layer in range(4):
            yield _reassign(task, 0.5, layers=str(layer), tokens=tokens // 4)
    for keep in (0.25, 0.5, 1.0):
        params = {"keep_experts": round(keep * EXPERTS)}
        yield Point(policy="lynx_v1_latency", params=params, keep=keep, batch=4, phases="both", prefill=True)
    for context in (512, 4096):
        yield Point(policy="lynx", params={"alpha": 2.0, "beta": 2}, keep=0.7, context=context)
    for mixing in ("shuffled", "separate"):
        for one in POLICIES[:4]:
            yield Point(**vars(one) | {"task": "mix", "mixing": mixing})


def _reassign(task: str, fraction: float, **more: Any) -> Point:
    params = {"fraction": fraction, "gate": "none", "threshold": 0.01} | {
        name: more.pop(name) for name in ("gate", "threshold") if name in more
    }
    return Point(policy="reassign", params=params, task=task, **more)


def write(root: Path, rows: int) -> tuple[int, int, int]:
    """Write them; (cells, rows of decode steps, rows of tokens)."""
    cells = list(points(rows // (2 * len(TASKS))))
    lanes = max(2, round(rows / (len(cells) * STEPS_OF_A_LANE * LAYERS)))
    for number, point in enumerate(cells):
        write_cell(root / f"cell{number:04d}", point, lanes, np.random.default_rng(number))
    return len(cells), len(cells) * lanes * STEPS_OF_A_LANE * LAYERS, sum(point.tokens for point in cells)


def write_cell(folder: Path, point: Point, lanes: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    name, params, task, batch = point.policy, point.params, point.task, point.batch
    documents = lanes * batch
    shown = f"{name}({', '.join(f'{key}={value}' for key, value in params.items())})" if params else name
    info = {
        **{"schema": SCHEMA, "cell_id": folder.name, "pair_id": f"{task}-{batch}-{point.mixing}", "study": "made_up"},
        **{"policy": name, "policy_params": params, "policy_label": shown, "phases": point.phases, "task": task},
        **{"batch_size": batch, "batching": "static", "scoring": "decode", "limit": None, "seed": 0, "model": "m"},
        **{"backend": "transformers", "dtype": "float32", "device": "cpu", "match_active": None},
        **{"layers": point.layers, "mixing": point.mixing, "num_experts": EXPERTS, "top_k": TOP_K},
        **{"num_layers": LAYERS, "sizes_id": f"{task}-{batch}"},
    }
    parts = TASKS if task == "mix" else (task,)
    doc = np.arange(documents)
    subtask = (
        [parts[at % len(parts)] for at in doc]
        if point.mixing == "shuffled"
        else sorted(parts[at % len(parts)] for at in doc)
    )
    text = [f"the {number % 97} boats of river {number % 89} wait here" for number in doc]
    harmed = rng.random(documents) < 0.05 * (name != "vanilla")
    answers = ["lost" if bad else words for bad, words in zip(harmed, text, strict=True)]
    scores = np.where(harmed, 0.0, 1.0)
    row: dict[str, Any] = {"subtask": subtask, "doc_id": doc, "lane": doc // batch, "request": doc, "slot": doc % batch}
    row |= {"new_tokens": 13 + doc % 9, "entered_step": doc * 0, "finish_reason": ["eos"] * documents}
    given = [None if of == "wmt16" else score for of, score in zip(subtask, scores.tolist(), strict=True)]
    more = {"score": given, "scores": ["{}"] * documents, "target": text, "filtered": answers}
    save(folder / "samples.parquet", row | more, SAMPLES)
    save(folder / "responses.parquet", row | {"response": answers, "prompt_tokens": doc * 0 + 40}, RESPONSES)
    metrics = [_metric(part, np.array(subtask) == part, answers, text, scores) for part in parts]
    expected = point.keep * EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** batch)
    _write_steps(folder, task, lanes, batch, expected, changed=name == "reassign", rng=rng)
    if point.phases in ("prefill", "both"):
        lane, layer = (axis.ravel() for axis in np.indices((lanes, LAYERS)))
        seen = {"lane": lane, "layer": layer, "tokens": lane * 0 + 640, "changed": lane * 0 + 64}
        save(folder / "prefill.parquet", {"subtask": [parts[0]] * lane.size} | seen, PREFILL)
    if name not in ("vanilla", "reassign", "no_drop"):
        kl = rng.exponential(0.02, documents)
        distance = {"tokens": row["new_tokens"], "kl": kl, "agreeing": row["new_tokens"] - 1}
        save(
            folder / "fidelity.parquet",
            {key: row[key] for key in ("subtask", "request", "doc_id", "lane")} | distance,
            FIDELITY,
        )
    if point.tokens:
        _write_tokens(folder, point, batch, rng)
    _write_timing(folder, point, lanes, expected, rng)
    _write_json(folder / "cell.json", info)
    _write_json(folder / "metrics.json", {"metrics": metrics})
    _write_json(folder / "status.json", {"state": "done", "error": None, "notes": []})
    _write_json(folder / "provenance.json", {})
    _write_json(folder / "DONE", {"files": {}})


def _metric(part: str, own: np.ndarray, answers: list[str], text: list[str], scores: np.ndarray) -> dict[str, Any]:
    corpus = part == "wmt16"
    at = np.flatnonzero(own)
    value = (
        bleu_of_counts(sentence_counts([answers[i] for i in at], [text[i] for i in at]).sum(axis=0))
        if corpus
        else float(scores[at].mean())
    )
    metric = {"subtask": part, "metric": "bleu" if corpus else "exact_match", "filter": "none", "value": value}
    return metric | {"higher_is_better": True, "headline": True, "corpus": corpus, "samples": len(at)}


def _write_steps(
    folder: Path, subtask: str, lanes: int, batch: int, expected: float, *, changed: bool, rng: np.random.Generator
) -> None:
    lane, step, layer = (axis.ravel() for axis in np.indices((lanes, STEPS_OF_A_LANE, LAYERS)))
    active = np.clip(rng.normal(expected, 2, lane.size).round(), TOP_K, EXPERTS)
    steps = {"subtask": [subtask] * lane.size, "lane": lane, "step": step, "layer": layer, "active_experts": active}
    steps |= {"live_rows": np.full(lane.size, batch), "scored_rows": np.full(lane.size, batch)}
    steps |= {"changed": np.full(lane.size, batch * changed)}
    save(folder / "steps.parquet", steps, STEPS)


def _write_tokens(folder: Path, point: Point, batch: int, rng: np.random.Generator) -> None:
    requests = max(1, round(point.tokens / (STEPS_OF_A_LANE * TOKEN_LAYERS)))
    request, step, layer = (axis.ravel() for axis in np.indices((requests, STEPS_OF_A_LANE, TOKEN_LAYERS)))
    kl = np.repeat(rng.exponential(0.02, requests * STEPS_OF_A_LANE), TOKEN_LAYERS)
    first = rng.integers(0, EXPERTS, request.size)
    experts = (first[:, None] + np.arange(TOP_K) * 5) % EXPERTS
    offsets = np.arange(0, experts.size + 1, TOP_K, dtype=np.int32)
    columns = {"subtask": [point.task] * request.size, "request": request, "doc_id": request, "lane": request // batch}
    columns |= {"step": step, "layer": layer, "kl": kl, "confidence": rng.random(request.size)}
    columns["experts"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(experts.ravel().astype(np.int16)))
    save(folder / "tokens.parquet", columns, TOKENS)


def _write_timing(folder: Path, point: Point, lanes: int, expected: float, rng: np.random.Generator) -> None:
    names = ["vanilla"] if point.policy == "vanilla" else ["vanilla", "policy"]
    shape = (len(names), WINDOWS, REPEATS, STEPS_OF_A_WINDOW)
    who, window, repeat, step = (axis.ravel() for axis in np.indices(shape))
    active = np.where(who == 0, expected / point.keep, expected) + rng.normal(0, 1, who.size)
    ms = (4.0 + 6.0 * active / (expected / point.keep)) * rng.lognormal(0, 0.02, who.size)
    columns: dict[str, Any] = {"name": [names[at] for at in who], "window": window, "subtask": [point.task] * who.size}
    columns |= {"lane": window % lanes, "start_step": window, "repeat": repeat, "step": step, "ms": ms}
    columns |= {"live_rows": np.full(who.size, point.batch), "active_experts": active, "context": 40.0 + window + step}
    info: dict[str, Any] = {"vanilla_active_experts": expected / point.keep, "policy_active_experts": expected}
    if point.prefill:
        whole = [(f"{name} prefill", repeat, 50.0 + repeat) for name in names for repeat in range(REPEATS)]
        prefilled: dict[str, list[Any]] = {"name": [one[0] for one in whole], "repeat": [one[1] for one in whole]}
        prefilled |= {"ms": [one[2] for one in whole], "subtask": [point.task] * len(whole)}
        columns = {key: [*own, *prefilled.get(key, [0] * len(whole))] for key, own in columns.items()}
        info |= {"vanilla_prefill_active_experts": EXPERTS, "policy_prefill_active_experts": point.keep * EXPERTS}
        info |= {"prefill_tokens": 640}
    save(folder / "timing.parquet", columns, TIMING)
    if point.context:
        who, repeat, at = (axis.ravel() for axis in np.indices((2, REPEATS, len(SECTIONS))))
        parts = {"name": [names[one] for one in who], "repeat": repeat, "section": [SECTIONS[one] for one in at]}
        save(folder / "breakdown.parquet", parts | {"ms": rng.lognormal(0, 0.1, who.size)}, BREAKDOWN)
        info |= {"context": point.context}
    _write_json(folder / "timing.json", info)


def save(file: Path, columns: dict[str, Any], schema: pa.Schema) -> None:
    length = len(next(iter(columns.values())))
    arrays = [
        pa.nulls(length, field.type)
        if columns.get(field.name) is None
        else (columns[field.name] if isinstance(columns[field.name], pa.Array) else pa.array(columns[field.name])).cast(
            field.type
        )
        for field in schema
    ]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))
