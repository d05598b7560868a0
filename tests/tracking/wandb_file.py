"""What an offline run wrote: wandb's own file (a log of protobuf records in LevelDB's framing), read back."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32768
WHOLE, FIRST, LAST = 1, 2, 4


@dataclass(kw_only=True)
class OfflineRun:
    folder: Path
    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    host: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)
    """Name or pattern -> its x axis."""
    artifacts: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """Name -> type, files."""
    exit_code: int | None = None
    kinds: set[str] = field(default_factory=set)

    def table(self, key: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a logged table."""
        (shown,) = [row[key] for row in self.history if key in row]
        content = json.loads((self.folder / "files" / shown["path"]).read_text())
        return content["columns"], content["data"]


def read_run(file: Path) -> OfflineRun:
    run = OfflineRun(folder=file.parent)
    for record in _records(file):
        kind = record.WhichOneof("record_type")
        run.kinds.add(kind)
        if kind == "run":
            told = record.run
            run.id, run.name, run.project, run.group = told.run_id, told.display_name, told.project, told.run_group
            run.job_type, run.host, run.tags = told.job_type, told.host, list(told.tags)
            _update(run.config, told.config.update)
        elif kind == "config":
            _update(run.config, record.config.update)
        elif kind == "summary":
            _update(run.summary, record.summary.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            run.history.append(row)
        elif kind == "metric":
            told = record.metric
            run.metrics[told.name or told.glob_name] = told.step_metric
        elif kind == "artifact":
            told = record.artifact
            run.artifacts[told.name] = told.type, [entry.path for entry in told.manifest.contents]
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _update(values: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = values
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)


def _records(file: Path) -> Iterator[Any]:
    data = file.read_bytes()
    identity, magic, _ = struct.unpack("<4sHB", data[:7])
    assert (identity, magic) == (b":W&B", 0xBEE1)
    at, parts = 7, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part = data[at + 7 : at + 7 + length]
        assert zlib.crc32(part, zlib.crc32(bytes([kind]))) == checksum
        at += 7 + length
        parts = part if kind in (WHOLE, FIRST) else parts + part
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
