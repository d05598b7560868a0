"""What a checkpoint lacks of its model, and what is wrong with files that cannot be read: for people, in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from lynx_exp.wording import counted

SHOWN = 3
"""Names of weights in a message."""

MOST_HEADER = 100_000_000
"""Bytes of a safetensors header at most: the format's own limit."""

REASON_LENGTH = 300
"""Characters of a library's message at most."""


class LoadingInfo(TypedDict, total=False):
    """What transformers says of a load (`output_loading_info`)."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]
    """Name, shape in the checkpoint, shape in the model."""
    error_msgs: Collection[str]


def differences(info: LoadingInfo) -> str | None:
    """What the loading info of transformers says of weights that the checkpoint and the model do not share; None if
    they share all. Tied weights, buffers that are not stored and keys that the model's class ignores are not in it.
    """
    missing = sorted(map(str, info.get("missing_keys", ())))
    unexpected = sorted(map(str, info.get("unexpected_keys", ())))
    shapes = sorted(
        f"{name} ({_shape(stored)} in the checkpoint, {_shape(wanted)} in the model)"
        for name, stored, wanted in info.get("mismatched_keys", ())
    )
    parts = [
        (missing, "missing from the checkpoint"),
        (shapes, "of another shape"),
        (unexpected, "in the checkpoint that the model has no place for"),
    ]
    said = [f"{_count(names)} {what}: {_first(names)}" for names, what in parts if names]
    return "; ".join([*said, *map(one_line, info.get("error_msgs", ()))]) or None


def one_line(error: object) -> str:
    """A message without its line breaks, cut where it becomes a report."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return text if len(text) <= REASON_LENGTH else f"{text[:REASON_LENGTH].rstrip()} ..."


def quantization(where: str) -> str | None:
    """The method that the config.json of a folder, or of a hub id in the cache, names; None: none is named."""
    from transformers.utils.hub import cached_file

    try:
        path = Path(where) / "config.json"
        cached = None if path.is_file() else cached_file(where, "config.json", local_files_only=True)
        found = json.loads((Path(cached) if isinstance(cached, str) else path).read_bytes()).get("quantization_config")
        return None if found is None else str(found.get("quant_method"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def damage(folder: Path) -> str | None:
    """The first file of a checkpoint that is no such file, and why; None where each looks right.

    Reads headers only: JSON files whole, of safetensors what says where its tensors lie.
    """
    for path in sorted(folder.glob("*.json")):
        reason = _json_damage(path)
        if reason is not None:
            return f"{path.name}: {reason}"
    for path in sorted(folder.glob("*.safetensors")):
        reason = _safetensors_damage(path)
        if reason is not None:
            return f"{path.name}: {reason}"
    lacking = _missing_experts(name for path in folder.glob("*.safetensors") for name in _names(path))
    return f"{_count(lacking)} missing from the checkpoint: {_first(lacking)}" if lacking else None


def _missing_experts(names: Iterable[str]) -> list[str]:
    """Where experts are stored one by one, those that a layer lacks and another has: transformers cannot put the others
    together, and does not say which."""
    found: dict[tuple[str, str], set[int]] = {}
    for name in names:
        match = re.fullmatch(r"(.*\bexperts\.)(\d+)(\..*)", name)
        if match:
            found.setdefault((match[1], match[3]), set()).add(int(match[2]))
    every = set().union(*found.values())
    return [f"{a}{number}{b}" for (a, b), own in sorted(found.items()) for number in sorted(every - own)]


def _names(path: Path) -> list[str]:
    with path.open("rb") as file:
        return list(json.loads(file.read(int.from_bytes(file.read(8), "little"))))


def _json_damage(path: Path) -> str | None:
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        return "nested too deeply"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        return f"not JSON ({one_line(error)})"
    if not isinstance(content, dict) and (path.name.endswith("config.json") or path.name == "tokenizer.json"):
        return f"holds a {type(content).__name__}, must hold an object"
    if path.name == "tokenizer.json" and "model" not in content:
        return "has no `model`: not a tokenizer"
    return None


def _safetensors_damage(path: Path) -> str | None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                return "a pointer of Git LFS, not the weights; fetch them with `git lfs pull`"
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(MOST_HEADER, size - 8):
                return f"not safetensors, or cut off: its {size} bytes do not hold the header that they announce"
            header = json.loads(file.read(length))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except (ValueError, RecursionError):
        return "its header is not JSON"
    return _header_damage(header, size - 8 - length)


def _header_damage(header: object, room: int) -> str | None:
    """`room`: bytes after the header."""
    if not isinstance(header, dict):
        return "its header is not an object"
    end = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
            return f"its header says nowhere where {name} lies"
        end = max(end, *offsets)
    if end != room:
        return f"its header describes {end} bytes of tensors, and the file holds {room}: cut off, or not its own"
    return None


def _count(names: list[str]) -> str:
    return counted(len(names), "weight")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _shape(size: Iterable[int]) -> str:
    return "x".join(map(str, size)) or "a number"
