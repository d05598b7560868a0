"""How long figures take from a large folder: reading, statistics and drawing, against ten seconds a figure.

    python benchmarks/figures.py [--rows 1000000] [--repeats 3]

A folder of made-up cells with that many rows of decode steps (and some of samples, responses and times) is written
first; nothing of that is timed. A figure's time is that of `lynx-results figures DIR --only NAME`, without starting
Python. The last line's ratio is 10 s over the slowest figure's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import report

from analysis import write_figures
from analysis.bleu import bleu_of_counts, sentence_counts
from analysis.study import study
from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.tables import RESPONSES, SAMPLES, STEPS, TIMING

ALLOWED_S = 10.0
POLICIES: tuple[tuple[str, dict[str, Any], float], ...] = (
    *(("vanilla", {}, 1.0), ("no_drop", {}, 1.0), ("top_k", {"k": 1}, 0.6), ("lynx", {"alpha": 3.0, "beta": 2}, 0.8)),
    *(("lynx", {"alpha": 1.0, "beta": 2}, 0.6), ("lynx_v1_latency", {"keep_experts": 32}, 0.4)),
    *(("deny_rank", {"rank": rank, "mode": "replace"}, 1.0) for rank in (0, 1)),
    *(("keep_ranks", {"ranks": ranks}, 0.5 + 0.1 * ranks) for ranks in (1, 4)),
)
"""(name, parameters, share of vanilla's active experts)."""
TASKS, BATCHES = ("gsm8k", "humaneval", "wmt16"), (4, 16, 64)
EXPERTS, TOP_K, LAYERS, STEPS_OF_A_LANE, REPEATS = 128, 8, 48, 20, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of decode steps")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "made_up", Path(folder) / "figures"
        cells, rows = write(root, asked.rows)
        print(f"{cells} cells, {rows:,} rows of decode steps")
        seconds = [timed(lambda: study(root)) for _ in range(asked.repeats)]
        print(f"{'reading and statistics':>24} {statistics.median(seconds):6.2f} s")
        cases = [case for name in drawn(root, out) for case in [measured(root, out, name, asked.repeats)]]
    slowest = min(cases, key=lambda case: case["ratio"])
    report("figures", 1.0, slowest, cases)


def drawn(root: Path, out: Path) -> Iterator[str]:
    """Names of the figures that the folder gives."""
    from analysis.figures import NAMES

    for name in NAMES:
        if write_figures(root, out=out, only=name):
            yield name


def measured(root: Path, out: Path, name: str, repeats: int) -> dict[str, Any]:
    seconds = [timed(lambda: write_figures(root, out=out, only=name)) for _ in range(repeats)]
    middle = statistics.median(seconds)
    print(f"{name:>24} {middle:6.2f} s")
    ends = {"ratio": ALLOWED_S / middle, "low": ALLOWED_S / max(seconds), "high": ALLOWED_S / min(seconds)}
    return {"figure": name, "seconds": middle} | ends


def timed(work: Any) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def write(root: Path, rows: int) -> tuple[int, int]:
    """(cells, rows of decode steps)."""
    points = [(p, task, batch) for p in POLICIES for task in TASKS for batch in BATCHES]
    lanes = max(2, round(rows / (len(points) * STEPS_OF_A_LANE * LAYERS)))
    for number, (policy, task, batch) in enumerate(points):
        write_cell(root / f"cell{number:04d}", policy, task, batch, lanes, np.random.default_rng(number))
    return len(points), len(points) * lanes * STEPS_OF_A_LANE * LAYERS


def write_cell(
    folder: Path, policy: tuple[str, dict[str, Any], float], task: str, batch: int, lanes: int, rng: np.random.Generator
) -> None:
    name, params, keep = policy
    folder.mkdir(parents=True)
    documents = lanes * batch
    label = f"{name}({', '.join(f'{key}={value}' for key, value in params.items())})" if params else name
    info = {
        **{"schema": SCHEMA, "cell_id": folder.name, "pair_id": f"{task}-{batch}", "study": "made_up", "model": "m"},
        **{"policy": name, "policy_params": params, "policy_label": label, "phases": "decode", "task": task},
        **{"batch_size": batch, "batching": "static", "scoring": "decode", "limit": None, "seed": 0},
        **{"backend": "transformers", "dtype": "float32", "device": "cpu", "match_active": None, "layers": None},
        **{"mixing": None, "num_experts": EXPERTS, "top_k": TOP_K, "num_layers": LAYERS},
    }
    corpus = task == "wmt16"
    doc = np.arange(documents)
    text = [f"the {number % 97} boats of river {number % 89} wait here" for number in doc]
    harmed = rng.random(documents) < 0.05 * (name != "vanilla")
    answers = ["lost" if bad else words for bad, words in zip(harmed, text, strict=True)]
    scores = np.where(harmed, 0.0, 1.0)
    row = {"subtask": [task] * documents, "doc_id": doc, "lane": doc // batch, "request": doc, "slot": doc % batch}
    row |= {"new_tokens": 20 + doc % 9, "finish_reason": ["eos"] * documents}
    more = {"score": None if corpus else scores, "scores": ["{}"] * documents, "target": text, "filtered": answers}
    save(folder / "samples.parquet", row | more, SAMPLES)
    save(folder / "responses.parquet", row | {"response": answers, "prompt_tokens": doc * 0 + 40}, RESPONSES)
    lane, step, layer = (axis.ravel() for axis in np.indices((lanes, STEPS_OF_A_LANE, LAYERS)))
    expected = keep * EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** batch)
    active = np.clip(rng.normal(expected, 2, lane.size).round(), TOP_K, EXPERTS)
    steps = {"subtask": [task] * lane.size, "lane": lane, "step": step, "layer": layer}
    steps |= {"live_rows": np.full(lane.size, batch), "active_experts": active, "changed": np.zeros(lane.size)}
    save(folder / "steps.parquet", steps, STEPS)
    names = ["vanilla"] if name == "vanilla" else ["vanilla", "policy"]
    who, repeat, at = (axis.ravel() for axis in np.indices((len(names), REPEATS, 16)))
    ms = np.where(who == 0, 10.0, 10.0 * (0.4 + 0.6 * keep)) * rng.lognormal(0, 0.02, who.size)
    timing = {"name": [names[each] for each in who], "repeat": repeat, "step": at, "ms": ms}
    save(folder / "timing.parquet", timing, TIMING)
    value = bleu_of_counts(sentence_counts(answers, text).sum(axis=0)) if corpus else float(scores.mean())
    metric = {"subtask": task, "metric": "bleu" if corpus else "exact_match", "filter": "none", "value": value}
    metric |= {"higher_is_better": True, "headline": True, "corpus": corpus, "samples": documents}
    write_json(folder / "cell.json", info)
    write_json(folder / "metrics.json", {"metrics": [metric]})
    write_json(folder / "timing.json", {"vanilla_active_experts": expected / keep, "policy_active_experts": expected})
    write_json(folder / "status.json", {"state": "done", "error": None, "notes": []})
    write_json(folder / "provenance.json", {})
    write_json(folder / "DONE", {"files": {}})


def save(file: Path, columns: dict[str, Any], schema: pa.Schema) -> None:
    length = len(next(iter(columns.values())))
    arrays = [
        pa.nulls(length, field.type)
        if columns.get(field.name) is None
        else pa.array(columns[field.name]).cast(field.type)
        for field in schema
    ]
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
