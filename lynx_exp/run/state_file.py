"""The state of one lane as a safetensors file that is written in one pass, a tensor at a time. Its last tensor is the
sha256 of all bytes before it."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from lynx_exp.engine.decoding.lane_state import LaneState
from lynx_exp.engine.kv_cache.kept import Part

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
HASH = "sha256"
_HASH_BYTES = 32
_BLOCK = 2**22

Of = Mapping[str, str]
"""What the state is of: equal wherever it may be gone on from."""


class Unusable(ValueError):
    """A file that is no state, a damaged one, or one of something else. As text: why."""


def write_state(file: BinaryIO, of: Of, state: LaneState) -> None:
    """OSError as the disk gives it."""
    # widest numbers first, so that each tensor begins at a multiple of its own
    parts = dict(sorted(state.parts.items(), key=lambda item: -item[1].dtype.itemsize))
    header: dict[str, Any] = {"__metadata__": {"state": json.dumps({"of": dict(of), "about": dict(state.about)})}}
    end = 0
    for name, part in parts.items():
        place = [end, end := end + part.nbytes]
        header[name] = {"dtype": _NAMES[part.dtype], "shape": list(part.shape), "data_offsets": place}
    header[HASH] = {"dtype": "U8", "shape": [_HASH_BYTES], "data_offsets": [end, end + _HASH_BYTES]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    total = hashlib.sha256()
    for piece in (struct.pack("<Q", len(head)), head):
        total.update(piece)
        file.write(piece)
    for part in parts.values():
        data = part.make().contiguous().reshape(-1).view(torch.uint8).numpy().data
        total.update(data)
        file.write(data)
    file.write(total.digest())


def read_state(path: Path, of: Of, lane: int) -> LaneState:
    """Its tensors are read when they are asked for. Unusable if it is not, to the last bit, a state of `of`."""
    try:
        _check_hash(path)
        handle: Any = safe_open(path, "pt")
        told = json.loads(handle.metadata()["state"])
        own, about = told["of"], told["about"]
        if not isinstance(own, dict) or not isinstance(about, dict):
            raise TypeError("it does not say of what it is")
        names = [name for name in handle.keys() if name != HASH]  # noqa: SIM118  # no mapping
        slices = {name: handle.get_slice(name) for name in names}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise Unusable(f"is damaged ({error})") from error
    differing = [name for name in sorted({*own, *of}) if own.get(name) != of.get(name)]
    if differing:
        raise Unusable(f"is of another {differing[0].replace('_', ' ')}")
    parts = {
        name: Part(DTYPES[part.get_dtype()], tuple(part.get_shape()), partial(handle.get_tensor, name))
        for name, part in slices.items()
    }
    return LaneState(lane=lane, about=about, parts=parts)


def _check_hash(path: Path) -> None:
    """ValueError if the last bytes are not the hash of those before."""
    left = path.stat().st_size - _HASH_BYTES
    total = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0:
            block = file.read(min(left, _BLOCK))
            if not block:
                break
            total.update(block)
            left -= len(block)
        if file.read() != total.digest():
            raise ValueError("its hash is another")
