"""Made-up cells of every study in sweeps/paper, with the tables that only those have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fake_study import EXPERTS, LAYERS, SUBTASKS, TOP_K, FakePolicy, write_cell

from lynx_exp.store.tables import BREAKDOWN, TIMING, TOKENS

TASKS = ("mini_gsm8k", "mini_wmt16")
COMMON: dict[str, Any] = {"batch_size": 8, "documents": 32}
VANILLA = FakePolicy(name="vanilla", params={})
SECTIONS_MS = {"attention": 1.0, "router": 0.2, "policy": 0.1, "experts": 2.0, "rest": 0.7}
STRENGTHS = (0.125, 0.25, 0.5)
"""Shares of assignments changed by random reassignment; twice that share of right answers is spoilt."""


def reassign(share: float = 0.5, **params: Any) -> FakePolicy:
    given = {"fraction": share, "first_rank": 0, "gate": "none", "threshold": 0.01, "weights": "own", "seed": 0}
    return FakePolicy(name="reassign", params=given | params, keep=1 - share, harm=min(2 * share, 0.9), shown=())


def write_paper(root: Path) -> Path:
    """Every study."""
    for task in TASKS:
        vanilla = write_cell(root, policy=VANILLA, task=task, repeats=0, **COMMON)
        write_tokens(vanilla, task, kl=0.0)
        for share in STRENGTHS:  # figure 4: prefill hurts more
            for phases in ("prefill", "decode", "both"):
                write_cell(root, policy=reassign(share), task=task, repeats=0, phases=phases, **COMMON)
        for gate in ("high", "low"):  # figure 6
            for threshold in (0.01, 0.03):
                policy = reassign(0.3 if gate == "high" else 0.1, gate=gate, threshold=threshold)
                write_cell(root, policy=policy, task=task, repeats=0, **COMMON)
        for layer in range(LAYERS):  # its correlation, and figure 9
            alone = write_cell(root, policy=reassign(0.5), task=task, repeats=0, layers=str(layer), kl=0.1, **COMMON)
            write_tokens(alone, task, kl=0.1)
            spared = {0: "1:", 1: "0:1,2:", 2: "0:2"}[layer]
            write_cell(root, policy=reassign(0.5), task=task, repeats=0, layers=spared, **COMMON)
        for rank in range(TOP_K):  # figure 7
            policy = FakePolicy(
                name="deny_rank", params={"rank": rank, "mode": "replace"}, harm=0.6 / (rank + 1), shown=("rank",)
            )
            write_cell(root, policy=policy, task=task, repeats=0, **COMMON)
        for ranks in range(1, TOP_K + 1):  # figure 8
            policy = FakePolicy(name="keep_ranks", params={"ranks": ranks}, harm=0.05 * (TOP_K - ranks))
            write_cell(root, policy=policy, task=task, repeats=0, **COMMON)
        for batch_size in (4, 8, 16):  # figure 17, table 2
            for policy in (VANILLA, FakePolicy(name="lynx", params={"alpha": 1.0, "beta": 2}, keep=0.7, harm=0.02)):
                write_cell(root, policy=policy, task=task, **COMMON | {"batch_size": batch_size}, measured=1)
    for keep in (0.25, 0.5, 1.0):  # figure 2
        policy = FakePolicy(name="lynx_v1_latency", params={"keep_experts": round(keep * EXPERTS)}, keep=keep)
        add_prefill(write_cell(root, policy=policy, phases="both", measured=2, **COMMON), policy)
    add_prefill(write_cell(root, policy=VANILLA, measured=2, **COMMON), VANILLA)
    for context in (64, 480):  # figure 18
        for policy in (VANILLA, FakePolicy(name="lynx", params={"alpha": 1.0, "beta": 2}, keep=0.7)):
            add_sections(write_cell(root, policy=policy, measured=3 + context, **COMMON), policy, context)
    return root


def write_tokens(folder: Path, task: str, kl: float) -> None:
    """Nine tokens a response, the surer the router the larger the divergence; experts of a Zipf-like draw."""
    rng = np.random.default_rng(1)
    rows = []
    popularity = 1 / np.arange(1, EXPERTS + 1)
    for subtask in SUBTASKS[task]:
        for doc in range(COMMON["documents"]):
            for step in range(9):
                divergence = kl * rng.random()
                for layer in range(LAYERS):
                    chosen = rng.choice(EXPERTS, TOP_K, replace=False, p=popularity / popularity.sum())
                    confidence = 0.01 + 0.03 * (divergence / kl if kl else rng.random())
                    place = {"subtask": subtask, "request": doc, "doc_id": doc, "lane": doc // COMMON["batch_size"]}
                    seen = {"kl": divergence, "confidence": confidence, "experts": chosen.tolist()}
                    rows.append(place | {"step": step, "layer": layer} | seen)
    pq.write_table(pa.Table.from_pylist(rows, TOKENS), folder / "tokens.parquet")


def add_prefill(folder: Path, policy: FakePolicy) -> None:
    """A prefill of 20 ms, and one more for each active expert."""
    table = pq.read_table(folder / "timing.parquet").select(TIMING.names).cast(TIMING)
    own = "vanilla" if policy.name == "vanilla" else "policy"
    names = {"vanilla": EXPERTS, own: policy.keep * EXPERTS}
    rows = [
        {"name": f"{name} prefill", "repeat": repeat, "step": 0, "ms": 20.0 + active + 0.01 * repeat}
        for name, active in names.items()
        for repeat in range(5)
    ]
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(rows, TIMING)]), folder / "timing.parquet")
    amend(folder, prefill_tokens=800, **{f"{name}_prefill_active_experts": active for name, active in names.items()})


def add_sections(folder: Path, policy: FakePolicy, context: int) -> None:
    own = "vanilla" if policy.name == "vanilla" else "policy"
    rows = [
        {"name": name, "repeat": repeat, "section": section, "ms": ms * (name != "vanilla" or section != "policy")}
        for name in dict.fromkeys(("vanilla", own))
        for repeat in range(5)
        for section, ms in (SECTIONS_MS | {"attention": context / 100}).items()
    ]
    pq.write_table(pa.Table.from_pylist(rows, BREAKDOWN), folder / "breakdown.parquet")
    amend(folder, context=context)


def amend(folder: Path, **more: Any) -> None:
    file = folder / "timing.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
