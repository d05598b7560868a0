"""A study of made-up cells on disk, in the layout of the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sacrebleu import corpus_bleu

from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.tables import PREFILL, RESPONSES, SAMPLES, TIMING

EXPERTS, TOP_K, LAYERS = 16, 2, 3
TEXT = "the small river runs past an old stone mill and under a bridge of dark oak where boats wait"
WORDS = tuple(TEXT.split())
SUBTASKS = {
    "mini_gsm8k": ("mini_gsm8k",),
    "mini_humaneval": ("mini_humaneval",),
    "mini_truthfulqa": ("mini_truthfulqa_gen", "mini_truthfulqa_mc1"),
    "mini_wmt16": ("mini_wmt16",),
}
MIX = {"mix": ("mini_gsm8k", "mini_wmt16")}
"""One stream of requests, in lanes as the cell's `mixing` says; shuffled lanes alternate the two."""
CHOICES = "mini_truthfulqa_mc1"
"""Of the subtasks the one that generates nothing."""
LENGTH_LIMIT = 48
BYTES = {"once": 10_000_000, "expert": 1_250_000.0, "row": 0, "position": 2048, "layers": LAYERS}
"""Of a decode step, as `lynx_exp.engine.timing.step_bytes` counts them."""


@dataclass(frozen=True, kw_only=True)
class FakePolicy:
    name: str
    params: dict[str, Any]
    keep: float = 1.0
    """Share of vanilla's active experts that it runs."""
    harm: float = 0.0
    """Share of right answers that it spoils."""
    longer: int = 0
    """Tokens that it adds to every response."""
    runs_on: int = 0
    """Every so many documents one response runs on to LENGTH_LIMIT and is cut off; 0 = none."""

    shown: tuple[str, ...] | None = None
    """Parameters that the label names; None = all."""

    @property
    def label(self) -> str:
        shown = self.params if self.shown is None else self.shown
        inside = ", ".join(f"{key}={self.params[key]:g}" for key in shown)
        return f"{self.name}({inside})" if inside else self.name


POLICIES = (
    FakePolicy(name="vanilla", params={}),
    FakePolicy(name="no_drop", params={}),
    FakePolicy(name="lynx", params={"alpha": 3.0, "beta": 2}, keep=0.85, harm=0.01),
    FakePolicy(name="lynx", params={"alpha": 1.0, "beta": 2}, keep=0.7, harm=0.03),
    FakePolicy(name="lynx", params={"alpha": 0.7, "beta": 1}, keep=0.5, harm=0.2),
    FakePolicy(name="lynx_v1_latency", params={"keep_experts": 4}, keep=0.38, harm=0.12),
    FakePolicy(name="lynx_v1_latency", params={"keep_experts": 8}, keep=0.7, harm=0.02),
    FakePolicy(name="lynx_v1_latency", params={"keep_experts": 12}, keep=0.92, harm=0.0),
    FakePolicy(name="top_k", params={"k": 1}, keep=0.62, harm=0.05),
    FakePolicy(name="random_keep", params={"keep_experts": 8, "seed": 0}, keep=0.75, harm=0.4),
)


def write_cell(
    root: Path,
    *,
    policy: FakePolicy = POLICIES[0],
    task: str = "mini_gsm8k",
    batch_size: int = 4,
    documents: int = 16,
    repeats: int = 5,
    study: str = "demo",
    state: str = "done",
    kl: float | None = None,
    thoughts: int | None = None,
    tries: int = 1,
    **info: Any,
) -> Path:
    """One cell's folder; `repeats=0` leaves timing out, a state other than done leaves the cell unfinished; with `kl`
    (nats a token, in each lane more than in the one before) the cell compared distributions; with `thoughts` (tokens)
    its responses have thoughts of so many, which are cut where the length limit ends a response; with `tries` each
    document has so many responses, in lanes of their own, each of which is scored.

    Vanilla's answers depend on the task only, a policy spoils some of them, so that pairs are realistic.
    """
    paired = {name: value for name, value in info.items() if name not in ("phases", "layers")}
    point = f"{task}-{batch_size}-{paired}"
    cell_id = hashlib.sha256(f"{policy.name}-{policy.params}-{task}-{batch_size}-{info}".encode()).hexdigest()[:16]
    folder = root / study / f"{policy.name}-{task}-b{batch_size}-{cell_id[:10]}"
    folder.mkdir(parents=True)
    cell = {
        **{
            "schema": SCHEMA,
            "cell_id": cell_id,
            "pair_id": hashlib.sha256(point.encode()).hexdigest()[:16],
            "study": study,
        },
        **{"model": "lynx_tiny", "policy": policy.name, "policy_params": policy.params, "policy_label": policy.label},
        **{
            "phases": "decode",
            "task": task,
            "batch_size": batch_size,
            "batching": "continuous",
            "waves": 4,
            "tail": "filler",
            "choices": "spread",
            "scoring": "decode",
            "limit": documents,
        },
        **{"seed": 0, "plan_seed": 0, "backend": "transformers", "dtype": "float32", "device": "cpu"},
        **{"match_active": None, "layers": None, "mixing": None},
        **{"num_experts": EXPERTS, "top_k": TOP_K, "num_layers": LAYERS, "sizes_id": cell_id},
        **info,
    }
    rng = np.random.default_rng(int(cell_id, 16) % 2**32)
    samples, responses, steps, metrics = [], [], [], []
    for subtask in (SUBTASKS | MIX)[task]:
        rows = _samples(subtask, batch_size, documents, policy, rng)
        samples += rows
        if task not in MIX:
            in_decode = info.get("phases") != "prefill"
            steps += _steps(subtask, batch_size, documents, policy.keep if in_decode else 1.0, rng)
        given = _try_again(rows, tries, batch_size, rng) if tries > 1 else rows
        responses += given
        metrics.append(_metric(subtask, rows))
    if thoughts is not None:
        _think(samples, thoughts)
    if task in MIX:
        _share_lanes(samples, batch_size, info["mixing"])
        steps = _steps(task, batch_size, len(samples), policy.keep, rng, more=2 * (info["mixing"] == "shuffled"))
    full = [step["active_experts"] for step in steps if step["live_rows"] == batch_size]
    activity = {"active_experts": float(np.mean(full)), "active_experts_full": float(np.mean(full))}
    activity |= {
        "live_rows": batch_size - 0.5,
        "full_steps": 0.9,
        "scored_share": 0.95,
        "new_tokens_mean": 12.0,
        "length_stop_share": 0.0,
    }
    _json(folder / "cell.json", cell)
    _json(folder / "metrics.json", {"metrics": metrics, **activity, "by_subtask": {}})
    error = {"class": "MemoryError", "message": "too big"} if state == "failed" else None
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:04+00:00", "seconds": 3.5}
    _json(
        folder / "status.json",
        {
            **{"state": state, "error": error, "invalid": [], "notes": [], "attempt": 1, "attempts": [], "failures": 0},
            **{"lanes": documents // batch_size, "together": 1, "kept": 0, **times},
        },
    )
    _json(folder / "provenance.json", {})
    pq.write_table(pa.Table.from_pylist(samples, SAMPLES), folder / "samples.parquet")
    pq.write_table(pa.Table.from_pylist(steps), folder / "steps.parquet")
    responses = [row | {"prompt_tokens": 20, "filler": False} for row in responses]
    pq.write_table(pa.Table.from_pylist(responses, RESPONSES), folder / "responses.parquet")
    if info.get("phases") in ("prefill", "both"):
        _write_prefill(folder, (SUBTASKS | MIX)[task], documents // batch_size, policy)
    if repeats:
        _write_timing(folder, policy, batch_size, repeats, rng)
    if kl is not None:
        prefill = info.get("phases") in ("prefill", "both")
        _write_fidelity(folder, (SUBTASKS | MIX)[task], batch_size, documents, kl, min(policy.keep, 1.0), prefill)
    if state == "done":
        _json(folder / "DONE", {"files": {}})  # names none, so that tests may change them
    return folder


def _samples(
    subtask: str, batch_size: int, documents: int, policy: FakePolicy, rng: np.random.Generator
) -> list[dict[str, Any]]:
    fixed = np.random.default_rng(len(subtask))
    rows = []
    for doc in range(documents):
        words = list(fixed.choice(WORDS, size=8))
        right, spoiled = fixed.random() < 0.93, rng.random() < policy.harm
        answer = list(words)
        if not right:
            answer[2] = "wrong"
        if spoiled:
            answer[4:6] = ["lost", "lost"]
        score = None if subtask == "mini_wmt16" else float(right and not spoiled)
        row = {"subtask": subtask, "doc_id": doc, "lane": doc // batch_size, "score": score, "scores": "{}"}
        row |= {"target": " ".join(words), "filtered": " ".join(answer), "response": " ".join(answer)}
        row |= {"request": doc, "slot": doc % batch_size}
        rows.append(row | _ending(subtask, doc, policy))
    return rows


def _try_again(
    samples: list[dict[str, Any]], tries: int, batch_size: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The responses; a document's first is as it was, the others are right by chance if that was."""
    responses = []
    for doc, row in enumerate(samples):
        scores = [row["score"], *(float(row["score"] * (rng.random() < 0.8)) for _ in range(tries - 1))]
        for at in range(tries):
            lane = (at * len(samples) + doc) // batch_size
            own = {"request": doc * tries + at, "lane": lane, "new_tokens": row["new_tokens"] + at}
            responses.append(row | own)
        row |= {"request": doc * tries, "score": float(np.mean(scores)), "repeat_scores": scores}
    return responses


def _ending(subtask: str, doc: int, policy: FakePolicy) -> dict[str, Any]:
    """Vanilla's responses have 8, 9, 10, 11 or 12 tokens and end by themselves."""
    if subtask == CHOICES:
        return {"new_tokens": 0, "finish_reason": "scored"}
    cut = policy.runs_on and doc % policy.runs_on == 0
    tokens = LENGTH_LIMIT if cut else 8 + doc % 5 + policy.longer
    return {"new_tokens": tokens, "finish_reason": "length" if cut else "eos" if doc % 2 else "stop"}


def _think(samples: list[dict[str, Any]], tokens: int) -> None:
    """A thought before each answer, of more tokens the longer that is; a response that is cut is cut within it."""
    for row in samples:
        cut, thought = row["finish_reason"] == "length", tokens + row["new_tokens"]
        row |= {"thought": "cut" if cut else "closed", "thought_tokens": thought}
        row["new_tokens"] = thought if cut else thought + row["new_tokens"]


def _share_lanes(samples: list[dict[str, Any]], batch_size: int, mixing: str) -> None:
    """Number the requests through the stream, and give them its lanes."""
    half, lanes = len(samples) // 2, len(samples) // batch_size
    for request, row in enumerate(samples):
        place = request if mixing == "separate" else 2 * request if request < half else 2 * (request - half) + 1
        row |= {"request": request, "lane": min(place // batch_size, lanes - 1), "slot": place % batch_size}


def _metric(subtask: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    corpus = subtask == "mini_wmt16"
    if corpus:
        value = corpus_bleu([row["filtered"] for row in rows], [[row["target"] for row in rows]]).score
    else:
        value = float(np.mean([row["score"] for row in rows]))
    return {
        **{"subtask": subtask, "metric": "bleu" if corpus else "exact_match", "filter": "none", "value": value},
        **{"higher_is_better": True, "headline": True, "corpus": corpus, "samples": len(rows)},
    }


def _active(batch_size: int, keep: float) -> float:
    return max(keep * 0.92 * EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** batch_size), 1.0)


def _steps(
    subtask: str, batch_size: int, documents: int, keep: float, rng: np.random.Generator, more: int = 0
) -> list[dict[str, Any]]:
    rows = []
    for lane in range(-(-documents // batch_size)):
        for step in range(6):
            live = batch_size if step < 5 else max(batch_size - 1, 1)
            for layer in range(LAYERS):
                active = int(np.clip(round(_active(live, keep) + more + rng.normal(0, 0.8)), 1, EXPERTS))
                row = {"subtask": subtask, "lane": lane, "step": step, "layer": layer}
                changed = round(max(1 - keep, 0) * live * TOP_K)
                rows.append(
                    row | {"live_rows": live, "scored_rows": live, "active_experts": active, "changed": changed}
                )
    return rows


def _write_prefill(folder: Path, subtasks: Sequence[str], lanes: int, policy: FakePolicy) -> None:
    """A hundred prompt tokens a lane."""
    changed = round(max(1 - policy.keep, 0) * 100 * TOP_K)
    rows = [
        {"subtask": subtask, "lane": lane, "layer": layer, "tokens": 100, "changed": changed}
        for subtask in subtasks
        for lane in range(lanes)
        for layer in range(LAYERS)
    ]
    pq.write_table(pa.Table.from_pylist(rows, PREFILL), folder / "prefill.parquet")


def _write_timing(folder: Path, policy: FakePolicy, batch_size: int, repeats: int, rng: np.random.Generator) -> None:
    """Windows of a run whose contexts grow from step to step."""
    rows = []
    for name, keep in (("vanilla", 1.0), ("policy", policy.keep)):
        if name == "policy" and policy.name == "vanilla":
            continue
        for repeat in range(repeats):
            drift = 1 + 0.03 * np.sin(repeat)
            for step in range(8):
                ms = (1.5 + 0.35 * _active(batch_size, keep) + 0.02 * batch_size) * drift * rng.lognormal(0, 0.03)
                place = {"window": repeat, "subtask": "any", "lane": 0, "start_step": 0, "live_rows": batch_size}
                place |= {"active_experts": _active(batch_size, keep), "context": 30.0 + step}
                rows.append(place | {"name": name, "repeat": 0, "step": step, "ms": ms})
    pq.write_table(pa.Table.from_pylist(rows, TIMING), folder / "timing.parquet")
    own = None if policy.name == "vanilla" else _active(batch_size, policy.keep)
    active = {"vanilla_active_experts": _active(batch_size, 1.0), "policy_active_experts": own}
    warmup = {
        "attempt": 1,
        "context": None,
        "warmup_rounds": 2,
        "stable": True,
        "warmup_round_ms": {row["name"]: [9.0, 2.0] for row in rows},
    }
    experts = {"experts_implementation": "per_expert", "candidates_ms": {"per_expert": 2.0, "grouped_mm": 3.0}}
    experts |= {"graphed": False, "compiled": False, "steps_note": None, "serving": {}}
    experts |= {"other_threads": 0.0, "cpus": 2}
    timing = {
        "new_tokens": 8,
        "windows": repeats,
        "repeats": 1,
        "precision": 0.5,
        "precision_reached": True,
        "batch_size": batch_size,
        "experts_note": None,
        "threads": 2,
    }
    _json(folder / "timing.json", timing | warmup | experts | active | _hardware(rows))


def _hardware(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of a machine that copies 20 GB/s, where a step draws 60 W."""
    found: dict[str, Any] = {"bytes": BYTES, "copy_gb_s": 20.0, "devices": 1}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        each = [BYTES["once"] + LAYERS * row["active_experts"] * BYTES["expert"] for row in own]
        each = [a + row["live_rows"] * row["context"] * BYTES["position"] for a, row in zip(each, own, strict=True)]
        rate = float(np.mean([a / row["ms"] / 1e6 for a, row in zip(each, own, strict=True)]))
        found |= {f"{name}_step_gb": float(np.mean(each)) / 1e9, f"{name}_gb_s": rate, f"{name}_s_mbu": rate / 20.0}
        found[f"{name}_j_per_token"] = 0.06 * float(np.mean([row["ms"] / row["live_rows"] for row in own]))
    return found


def strip_hardware(folder: Path) -> None:
    """What a cell of before they were measured has not."""
    timing = json.loads((folder / "timing.json").read_text())
    ends = ("_step_gb", "_gb_s", "_s_mbu", "_j_per_token")
    kept = {
        name: value for name, value in timing.items() if not name.endswith(ends) and name not in ("bytes", "devices")
    }
    _json(folder / "timing.json", kept)


def _write_fidelity(
    folder: Path, subtasks: Sequence[str], batch_size: int, documents: int, kl: float, mass: float, prefill: bool
) -> None:
    """Responses of 1, 2, 3 ... tokens, one of them differing where there are at least two, after prompts of 8."""
    rows = []
    for subtask in subtasks:
        for doc in range(documents):
            lane, tokens = doc // batch_size, 1 + doc % 5
            row = {"subtask": subtask, "request": doc, "doc_id": doc, "lane": lane, "tokens": tokens}
            row |= {"kl": kl * (lane + 1) * tokens, "agreeing": tokens - (tokens > 1)}
            rows.append(
                row
                | {"retained": mass * (tokens - 1), "prompt_tokens": 8 * prefill, "prompt_retained": 8 * mass * prefill}
            )
    pq.write_table(pa.Table.from_pylist(rows), folder / "fidelity.parquet")
    metrics = json.loads((folder / "metrics.json").read_text())
    _json(folder / "metrics.json", metrics | {"selection_us": 40.0, "kl": kl, "agreement": 0.5})


def _json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content))


def write_study(
    root: Path, *, policies: Sequence[FakePolicy] = POLICIES, tasks: Sequence[str] = tuple(SUBTASKS),
    batch_sizes: Sequence[int] = (4, 16), documents: int = 16, **more: Any,
) -> Path:  # fmt: skip
    """A grid of cells below `root`/demo."""
    for policy in policies:
        for task in tasks:
            for batch_size in batch_sizes:
                write_cell(root, policy=policy, task=task, batch_size=batch_size, documents=documents, **more)
    return root
