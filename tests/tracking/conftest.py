"""Cells on disk to track, and a wandb that keeps to the test's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import wandb
import yaml

from lynx_exp.store.files import sha256_of, write_json, write_parquet, write_text
from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.read import CellRecord, read_cell
from lynx_exp.store.tables import RESPONSES, SAMPLES, STEPS, TIMING

Write = Callable[..., CellRecord]


@pytest.fixture(autouse=True)
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.teardown()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str = "cell", policy: str = "lynx", *, steps: int = 3, **tracker: Any) -> CellRecord:
        """A finished cell of two subtasks below `tmp_path`/demo, timed and compared with vanilla."""
        folder = tmp_path / "demo" / name
        folder.mkdir(parents=True)
        label = policy if policy == "vanilla" else f"{policy}(alpha=3)"
        info = {"schema": SCHEMA, "cell_id": f"{name}-{policy}".ljust(64, "0"), "pair_id": "p", "study": "demo"}
        info |= {"model": f"{Path.home()}/models/tiny", "task": "t", "policy": policy, "policy_label": label}
        info |= {"policy_params": {"alpha": 3}, "phases": "decode", "batch_size": 4, "num_experts": 8, "seed": 0}
        info |= {"device": "cpu", "dtype": "float32", "limit": 70, "batching": "static", "backend": "transformers"}
        write_json(folder / "cell.json", info)
        given = {"project": "moe", "entity": None, "mode": "offline", "tags": ["mine"]} | tracker
        config = {"batch_size": 4, "results": f"{Path.home()}/results", "tracker": given}
        write_text(folder / "config.yaml", yaml.safe_dump(config))
        write_json(folder / "provenance.json", {"cpu": "a CPU", "torch": {"threads": 2}})
        write_json(folder / "status.json", {"state": "done", "attempt": 2, "seconds": 1.5, "notes": []})
        metrics = [
            _metric("one", "acc", 0.5, headline=True), _metric("one", "acc_norm", 0.25),
            _metric("two", "bleu", None, headline=True),
        ]  # fmt: skip
        numbers = {
            "active_experts": 3.5,
            "active_experts_full": 3.25,
            "kl": 0.01,
            "agreement": 0.9,
            "selection_us": None,
        }
        by_subtask = {"one": {"active_experts": 3.0, "kl": None}, "two": {"active_experts": 4.0}}
        matched = {"parameter": "alpha", "value": 2.5}
        everything = {"metrics": metrics, **numbers, "by_subtask": by_subtask, "matched": matched}
        write_json(folder / "metrics.json", everything)
        rows = [
            {"subtask": subtask, "lane": lane, "step": step, "layer": layer, "live_rows": 4 - lane}
            | {"active_experts": 1 + (step + layer + lane) % 5}
            for subtask in ("one", "two") for lane in (0, 1) for step in range(steps) for layer in (0, 1)
        ]  # fmt: skip
        write_parquet(folder / "steps.parquet", pa.Table.from_pylist(rows, schema=STEPS))
        samples = [
            {"subtask": subtask, "doc_id": doc, "lane": doc // 4, "score": doc % 2 if subtask == "one" else None}
            | {"scores": "{}", "target": f"target {doc}", "filtered": f"answer {doc}", "response": f"the answer {doc}"}
            | {"request": doc, "slot": 0, "prompt_hash": "h", "new_tokens": 5, "finish_reason": "eos"}
            for subtask in ("one", "two") for doc in range(70)
        ]  # fmt: skip
        write_parquet(folder / "samples.parquet", pa.Table.from_pylist(samples, schema=SAMPLES))
        write_parquet(folder / "responses.parquet", pa.Table.from_pylist([], schema=RESPONSES))
        ms = {"vanilla": [2.0, 4.0, 9.0], "policy": [1.0, 2.5, 3.0]}
        timing = [
            {"name": name, "repeat": 0, "step": step, "ms": value}
            for name, values in ms.items() for step, value in enumerate(values)
            if name == "vanilla" or policy != "vanilla"
        ]  # fmt: skip
        write_parquet(folder / "timing.parquet", pa.Table.from_pylist(timing, schema=TIMING))
        info = {"policy_active_experts": None if policy == "vanilla" else 3.0, "copy_gb_s": 20.0, "devices": 1}
        info |= {"vanilla_step_gb": 0.02, "vanilla_gb_s": 10.0, "vanilla_s_mbu": 0.5, "vanilla_j_per_token": 0.25}
        info |= {} if policy == "vanilla" else {"policy_step_gb": 0.01, "policy_gb_s": 4.0, "policy_s_mbu": 0.2}
        write_json(folder / "timing.json", info)
        files = sorted(path for path in folder.iterdir())
        write_json(folder / "DONE", {"files": {path.name: sha256_of(path) for path in files}})
        return read_cell(folder)

    return written


def _metric(subtask: str, name: str, value: float | None, *, headline: bool = False) -> dict[str, Any]:
    row = {"subtask": subtask, "metric": name, "filter": "none", "value": value, "headline": headline}
    return row | {"higher_is_better": True, "corpus": False, "samples": 70}
