"""What `vllm bench serve --save-result` leaves of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN: dict[str, Any] = {
    "date": "20261124-220000",
    "model_id": "models/lynx_tiny",
    "num_prompts": 32,
    "request_rate": "inf",
    "burstiness": 1.0,
    "max_concurrency": 4,
    "duration": 2.0,
    "completed": 32,
    "failed": 0,
    "total_input_tokens": 1536,
    "total_output_tokens": 1024,
    "request_throughput": 16.0,
    "output_throughput": 512.0,
    "total_token_throughput": 1280.0,
    "request_goodput": 12.0,
    "run_number": 1,
}
OF = ("ttft", "tpot", "itl", "e2el")
METRICS = [f"{statistic}_{metric}_ms" for statistic in ("mean", "median", "p99") for metric in OF]
RUN |= {name: float(number) for number, name in enumerate(METRICS)}


def saved(path: Path, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(RUN | more))
    return path


def lynx(**more: object) -> dict[str, object]:
    return {"additional_config": {"lynx": {"policy": "lynx", "alpha": 1, "beta": 2} | more}}
