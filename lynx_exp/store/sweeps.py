"""What a sweep set out to run, so that what is missing can be named: one small file a sweep, in its study's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lynx_exp.store.files import read_json, write_json
from lynx_exp.store.identity import SCHEMA, code_digest, digest

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
    code: str | None
    """Digest of the code that asked, which is in the name of every cell's folder."""


def write_sweep(study: Path, cells: Sequence[Asked], command: Sequence[str]) -> Path:
    """The same cells, asked again, take the place of the file that they left before."""
    (study / FOLDER).mkdir(parents=True, exist_ok=True)
    path = study / FOLDER / f"{digest(sorted(cell.folder for cell in cells))[:12]}.json"
    content: Mapping[str, Any] = {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "code": code_digest(),
        "cells": [asdict(cell) for cell in cells],
    }
    write_json(path, content)
    return path


def read_sweeps(study: Path) -> list[Sweep]:
    """Those of a study, the latest last. What is damaged counts as absent."""
    found = [_read(path) for path in (study / FOLDER).glob("*.json")]
    return sorted((sweep for sweep in found if sweep is not None), key=lambda sweep: sweep.started)


def latest_sweeps(study: Path) -> list[Sweep]:
    """Those by the code of the latest. What other code asked for and did not get, nobody will ever run."""
    found = read_sweeps(study)
    return [sweep for sweep in found if sweep.code == found[-1].code]


def is_sweep(path: Path) -> bool:
    """Whether the file is whole, and of this version."""
    return _read(path) is not None


def _read(path: Path) -> Sweep | None:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        return None
    try:
        cells = [Asked(**cell) for cell in content["cells"]]
        started, command = content["started"], content["command"]
        return Sweep(started=started, command=command, cells=cells, code=content.get("code"))
    except (KeyError, TypeError):
        return None
