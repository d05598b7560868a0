"""Configurations whose cells have ids that must never change: a cell on disk is found again by its id.

`python -m tests.store.known_ids > tests/store/known_ids.json` writes them anew, with another SCHEMA only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from lynx_exp.config import Config, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.store.identity import cell_ids

AROUND: dict[str, Any] = {"model_digest": "m", "data_digests": {"t": "d"}, "code": "c"}
DIGITS = 12
"""Of an id that is kept."""

BASES: tuple[dict[str, Any], ...] = (
    {"policy": {"name": "lynx", "alpha": 3.0, "beta": 2}},
    {"policy": {"name": "vanilla", "min_batch": 1, "match_active": None}},
    {"policy": {"name": "noise_floor"}, "batch_size": 4, "seed": 3},
    {"policy": {"name": "top_k", "k": 1}, "batching": "static", "device": "cpu"},
    {"policy": {"name": "oea", "k0": 1}, "backend": "vllm", "measure.latency": True},
    {"policy": {"name": "coverage"}, "batching": "continuous", "task.weights": [1.0], "device": "cuda"},
)
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    *({"phases": value} for value in ("both", "none")),
    *({"layers": "1:"}, {"fidelity": True}, {"tokens": True}, {"task.subtasks": ["a", "b"]}, {"task.weights": [2.0]}),
    *({"task.mixing": "separate"}, {"batch_size": 1}, {"batch_size": 1, "plan_seed": 4}, {"batch_size": 64}),
    *({"batching": "static"}, {"waves": 2}, {"tail": "drain"}, {"choices": "together"}, {"scoring": "prefill"}),
    *({"truncate": "left"}, {"limit": 8}, {"seed": 2}, {"plan_seed": 5}, {"dtype": "bfloat16"}, {"kernel": "torch"}),
    *({"steps": "eager"}, {"threads": 2}, {"vllm.enforce_eager": False}, {"vllm.engine_args": {"a": {"b": 1}}}),
    *({"model.device_map": {"lm_head": 0}}, {"model.experts_implementation": "eager"}, {"model.parallel": "tp"}),
    *({"measure.latency": True}, {"measure.latency": True, "measure.windows": 12, "measure.precision": 0.5}),
    *(
        {"measure.context": 9},
        {"measure.latency": True, "measure.breakdown": True},
        {"results": "r", "first": ["calibrate"], "then": ["table"]},
    ),
    *({"model.config": {"a": 1}}, {"model.id": "c/d"}, {"task.generation.until": ["x"]}, {"pack.max_rows": 8}),
)


def configs() -> Iterator[dict[str, Any]]:
    """Every change of every base, as config.yaml has it."""
    plain = asdict(
        Config(
            model=ModelConfig(kind="hub", id="a/b"),
            policy={"name": "vanilla"},
            task=TaskConfig(name="t", subtasks=["t"]),
            tracker=TrackerConfig(),
        )
    )
    for base in BASES:
        for change in CHANGES:
            config = deepcopy(plain)
            for name, value in (base | change).items():
                *parents, last = name.split(".")
                node = config
                for parent in parents:
                    node = node[parent]
                node[last] = value
            yield config


def ids() -> list[str]:
    """Of each, the beginnings of its three ids."""
    return [" ".join(part[:DIGITS] for part in cell_ids(config, **AROUND)) for config in configs()]


if __name__ == "__main__":
    print(json.dumps(ids(), indent=0))
