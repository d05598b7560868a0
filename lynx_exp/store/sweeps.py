"""What a sweep set out to run, so that what is missing can be named: one small file a sweep, in its study's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lynx_exp.store.files import read_json, write_json
from lynx_exp.store.identity import SCHEMA, digest

FOLDER = "sweeps"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A cell of a sweep."""

    folder: str
    """Its folder, below the study's."""
    name: str
    """For people: task, policy, batch size."""
    requests: int
    """Of all its subtasks."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    started: str
    """Of its latest run."""
    command: Sequence[str]
    cells: Sequence[Asked]


def write_sweep(study: Path, cells: Sequence[Asked], command: Sequence[str]) -> Path:
    """The same cells, asked again, take the place of the file that they left before."""
    (study / FOLDER).mkdir(parents=True, exist_ok=True)
    path = study / FOLDER / f"{digest(sorted(cell.folder for cell in cells))[:12]}.json"
    content: Mapping[str, Any] = {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "cells": [asdict(cell) for cell in cells],
    }
    write_json(path, content)
    return path


def read_sweeps(study: Path) -> list[Sweep]:
    """Those of a study, the latest last. What is damaged counts as absent."""
    found = []
    for path in (study / FOLDER).glob("*.json"):
        content = read_json(path)
        if isinstance(content, dict) and content.get("schema") == SCHEMA:
            cells = [Asked(**cell) for cell in content["cells"]]
            found.append(Sweep(started=content["started"], command=content["command"], cells=cells))
    return sorted(found, key=lambda sweep: sweep.started)
