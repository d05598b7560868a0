"""What makes a cell the cell that it is: a hash over everything that can change its science.

Every field of `lynx_exp.config.Config` declares whether it is part of that (`lynx_exp.config.roles`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lynx_exp.config import HASHED, Config, uses
from lynx_exp.config import NOISE_FLOOR as NOISE_FLOOR
from lynx_exp.config import UNTOUCHED as UNTOUCHED

SCHEMA = 3
"""Version of a cell's folder. A change of meaning raises it, and old cells run again."""

USES = uses(Config)
"""What each field is for, as its declaration in `lynx_exp.config` says."""

SCIENTIFIC = tuple(name for name, use in USES.items() if use.role in HASHED)
"""Fields that are in the hash."""

NOT_PAIRED = tuple(name for name in SCIENTIFIC if not USES[name].paired)
"""What may differ between a cell and its baseline."""

# By hand: which parameters came after cells were on disk is history, and no declaration of today's classes holds it. A
# parameter that is added belongs here, or every id changes (tests/config holds some).
USUAL = (("weights", "renormalize"), ("k2", None), ("substitute", True), ("protect", None), ("per_layer", None))
"""Parameters of policies that came later, at the values with which it does what it did: not in the hash."""

CODE = ("routing", "models", "engine", "vllm_plugin", "vllm_backend", "tasks")
"""Subpackages whose source is part of the hash."""

_WHOLE_FILE = 512 * 2**20
_SAMPLE = 2**20


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, Any]:
    """Dotted field names of a nested config; a field that holds a mapping stays whole."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in USES:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def scientific_fields(config: Mapping[str, object]) -> dict[str, object]:
    """The fields that the hash takes, with what has no effect brought to one form.

    Raises ValueError for a field that `Config` does not have.
    """
    flat = flatten(config)
    if unknown := sorted(set(flat) - set(USES)):
        raise ValueError(f"{', '.join(unknown)}: no field of a cell, so nobody knows whether it makes another one")
    name = flat["policy"]["name"]
    known = flat | {"policy.name": name}
    # options that have no effect are brought to one value, so that equal science has one id
    fields = {name: flat[name] if USES[name].has_effect(known) else USES[name].idle for name in SCIENTIFIC}
    # what only a policy reads must not make two cells of one vanilla
    if name in UNTOUCHED:
        fields["policy"] = {"name": name}
    else:
        fields["policy"] = {key: value for key, value in fields["policy"].items() if (key, value) not in USUAL}
    if fields["plan_seed"] is None or fields["batch_size"] == 1:
        fields["plan_seed"] = fields["seed"]
    return fields


class Ids(NamedTuple):
    """64 hex digits each."""

    cell: str
    pair: str
    """Equal for cells that differ in policy, phases and layers only."""
    sizes: str
    """Equal for cells that differ in batch size only."""


def cell_ids(config: Mapping[str, object], *, model_digest: str, data_digests: Mapping[str, str], code: str) -> Ids:
    """The batch plan follows from these: number of requests (data, limit), batch size, seed and the engine's code."""
    fields = {name: _canonical(value) for name, value in scientific_fields(config).items()}
    around = {"schema": SCHEMA, "model": model_digest, "data": dict(data_digests), "code": code}
    paired = {name: value for name, value in fields.items() if name not in NOT_PAIRED}
    sizes = {name: value for name, value in fields.items() if name != "batch_size"}
    return Ids(
        cell=digest(around | {"fields": fields}),
        pair=digest(around | {"fields": paired, "pair": True}),
        sizes=digest(around | {"fields": sizes, "sizes": True}),
    )


def digest(value: object) -> str:
    """sha256 of a JSON value, independent of the order of keys; 3 and 3.0 are one value."""
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: object) -> object:
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


def _hash_files(root: Path, files: Iterable[Path]) -> str:
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
