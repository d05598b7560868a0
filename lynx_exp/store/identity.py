"""What makes a cell the cell that it is: a hash over everything that can change its science.

Every field of `lynx_exp.config.Config` is in exactly one of three lists below; a test fails on a field in none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = 3
"""Version of a cell's folder. A change of meaning raises it, and old cells run again."""

SCIENTIFIC = (
    "policy",
    "phases",
    "layers",
    "fidelity",
    "tokens",
    "task.subtasks",
    "task.weights",
    "task.mixing",
    "batch_size",
    "batching",
    "waves",
    "tail",
    "choices",
    "scoring",
    "truncate",
    "limit",
    "seed",
    "plan_seed",
    "backend",
    "vllm.prefix_caching",
    "vllm.max_num_batched_tokens",
    "vllm.enforce_eager",
    "vllm.engine_args",
    "dtype",
    "device",
    "kernel",
    "steps",
    "threads",
    "model.experts_implementation",
    "model.device_map",
    "model.parallel",
    "measure.latency",
    "measure.windows",
    "measure.max_windows",
    "measure.new_tokens",
    "measure.repeats",
    "measure.precision",
    "measure.context",
    "measure.prefill",
    "measure.breakdown",
)
"""In the hash. `threads`, `kernel`, `steps` and where the model lies change latency and last bits; a cell without
`measure` lacks that record."""

DIGESTED = (
    *("model.kind", "model.id", "model.revision", "model.sizes", "model.config", "model.seed"),
    *("task.data", "task.revision", "task.num_fewshot", "task.fewshot_seed", "task.apply_chat_template"),
    *("task.fewshot_as_multiturn", "task.chat_template_args", "task.system_instruction", "task.repeats"),
    *("task.generation.temperature", "task.generation.top_p", "task.generation.top_k"),
    *("task.generation.max_gen_toks", "task.generation.until"),
)
"""In the hash by what they lead to: the digest of the weights, so that a model may move; the digest of documents,
prompts and generation settings, so that data may."""

COSMETIC = (
    "model.trust_remote_code",
    "model.allow_partial",
    "task.name",
    "sandbox",
    "confirm_unsafe_code",
    "plan",
    "plan_seeds",
    "max_failures",
    "ignore_oom",
    "pack.max_rows",
    "pack.memory_gib",
    "pack.max_cells",
    "tracker.name",
    "tracker.project",
    "tracker.entity",
    "tracker.mode",
    "tracker.tags",
    "tracker.wait_s",
    "results",
    "study_name",
    "then",
)
"""Not in the hash. `pack` sets lanes side by side that never see each other."""

NOISE_FLOOR = "noise_floor"
"""In place of a policy: vanilla again, on another batch plan."""

UNTOUCHED = ("vanilla", NOISE_FLOOR)
"""Where no policy is attached."""

USUAL = (("weights", "renormalize"), ("k2", None), ("substitute", True))
"""Parameters of policies that came later, at the values with which it does what it did: not in the hash."""

NOT_PAIRED = ("policy", "phases", "layers", "fidelity", "tokens")
"""What may differ between a cell and its baseline."""

CODE = ("routing", "models", "engine", "vllm_plugin", "vllm_backend", "tasks")
"""Subpackages whose source is part of the hash."""

OPEN = ("policy", "model.sizes", "model.config", "model.device_map", "task.chat_template_args", "vllm.engine_args")
"""Nodes whose keys are not fields."""

_WHOLE_FILE = 512 * 2**20
_SAMPLE = 2**20


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted field names of a nested config; nodes in `OPEN` stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in OPEN:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def scientific_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the hash takes, with what has no effect brought to one form.

    Raises ValueError for a field that no list above names.
    """
    flat = flatten(config)
    unknown = sorted(set(flat) - {*SCIENTIFIC, *DIGESTED, *COSMETIC})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: neither scientific nor cosmetic; add it to a list in {__name__}")
    fields = {name: flat[name] for name in SCIENTIFIC}
    name = fields["policy"]["name"]
    if name in UNTOUCHED:
        fields |= {"policy": {"name": name}, "phases": "none", "layers": None, "fidelity": False}
    else:
        fields["policy"] = {key: value for key, value in fields["policy"].items() if (key, value) not in USUAL}
    if fields["task.weights"] is None:
        fields["task.mixing"] = None
    if fields["device"] == "cpu":
        fields["steps"] = None
    if fields["batching"] == "static":
        fields |= {"waves": None, "tail": None}
    if fields["plan_seed"] is None or fields["batch_size"] == 1:
        fields["plan_seed"] = fields["seed"]
    if fields["backend"] != "vllm":
        fields |= {name: None for name in fields if name.startswith("vllm.")}
    if not fields["measure.latency"]:
        fields |= {name: None for name in fields if name.startswith("measure.") and name != "measure.latency"}
    return fields


class Ids(NamedTuple):
    """64 hex digits each."""

    cell: str
    pair: str
    """Equal for cells that differ in policy, phases and layers only."""
    sizes: str
    """Equal for cells that differ in batch size only."""


def cell_ids(config: Mapping[str, Any], *, model_digest: str, data_digests: Mapping[str, str], code: str) -> Ids:
    """The batch plan follows from these: number of requests (data, limit), batch size, seed and the engine's code."""
    fields = _canonical(scientific_fields(config))
    around = {"schema": SCHEMA, "model": model_digest, "data": dict(data_digests), "code": code}
    paired = {name: value for name, value in fields.items() if name not in NOT_PAIRED}
    sizes = {name: value for name, value in fields.items() if name != "batch_size"}
    return Ids(
        cell=digest(around | {"fields": fields}),
        pair=digest(around | {"fields": paired, "pair": True}),
        sizes=digest(around | {"fields": sizes, "sizes": True}),
    )


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of keys; 3 and 3.0 are one value."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@cache
def code_digest(package: Path = Path(__file__).parents[1]) -> str:
    """Hash of the source that decides a cell's outcome."""
    files = (path for part in CODE for path in (package / part).rglob("*") if path.suffix in (".py", ".yaml"))
    return _hash_files(package, files)


def folder_digest(folder: Path) -> str:
    """Hash of a model folder: names and contents of its JSON, text, tokenizer and weight files.

    Of a file above 512 MiB only the size and 64 samples of 1 MiB are read: enough to tell models apart.
    """
    kinds = (".json", ".txt", ".model", ".safetensors", ".bin", ".jinja", ".py")
    beside = ("recipe.json", "README.md", "lynx_calibration.st")
    files = (p for p in folder.iterdir() if p.suffix in kinds and p.name not in beside)
    return _hash_files(folder, files)


def _hash_files(root: Path, files: Any) -> str:
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + _file_hash(path))
    return total.hexdigest()


def _file_hash(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_FILE:
            return hashlib.file_digest(file, "sha256").digest()
        sampled = hashlib.sha256(str(size).encode())
        for sample in range(64):
            file.seek(sample * (size - _SAMPLE) // 63)
            sampled.update(file.read(_SAMPLE))
        return sampled.digest()
