"""What a sweep set out to run, so that what is missing can be named: one small file a sweep, in its study's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lynx_exp.store.file_forms import SWEEP
from lynx_exp.store.files import write_json
from lynx_exp.store.identity import SCHEMA, code_digest, digest
from lynx_exp.store.reading import Damaged, read_value

FOLDER = "sweeps"


@dataclass(frozen=True, kw_only=True)
class SweepCell:
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
    cells: Sequence[SweepCell]
    code: str | None
    """Digest of the code that asked, which is in the name of every cell's folder."""


def write_sweep(study: Path, cells: Sequence[SweepCell], command: Sequence[str]) -> Path:
    """The same cells, asked again, take the place of the file that they left before."""
    (study / FOLDER).mkdir(parents=True, exist_ok=True)
    path = sweep_file(study, cells)
    content: Mapping[str, object] = {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "code": code_digest(),
        "cells": [asdict(cell) for cell in cells],
    }
    write_json(path, content)
    return path


def sweep_file(study: Path, cells: Sequence[SweepCell]) -> Path:
    """Where `write_sweep` writes."""
    return study / FOLDER / f"{digest(sorted(cell.folder for cell in cells))[:12]}.json"


def read_sweeps(study: Path) -> list[Sweep]:
    """Those of a study, the latest last. What is damaged counts as absent."""
    found = [_read(path) for path in (study / FOLDER).glob("*.json")]
    return sorted((sweep for sweep in found if sweep is not None), key=lambda sweep: sweep.started)


def latest_sweeps(study: Path) -> list[Sweep]:
    """Those by the code of the latest. What other code asked for and did not get, nobody will ever run."""
    found = read_sweeps(study)
    return [sweep for sweep in found if sweep.code == found[-1].code]


def damaged_sweeps(study: Path) -> list[str]:
    """Of each file that is not what this version writes: what it is."""
    found = []
    for path in sorted((study / FOLDER).glob("*.json")):
        try:
            _content(path)
        except Damaged as error:
            found.append(f"{FOLDER}/{error}")
    return found


def _content(path: Path) -> dict[str, Any]:
    content = read_value(path, SWEEP)
    if content["schema"] != SCHEMA:
        raise Damaged(path, f"is of form {content['schema']}, and this lynx_exp reads form {SCHEMA}")
    for cell in content["cells"]:
        if Path(cell["folder"]).name != cell["folder"]:
            raise Damaged(path, f"asks for {cell['folder']!r}, which is no folder of a study")
    return content


def is_sweep(path: Path) -> bool:
    """Whether the file is whole, and of this version."""
    return _read(path) is not None


def _read(path: Path) -> Sweep | None:
    try:
        content = _content(path)
    except Damaged:
        return None
    cells = [
        SweepCell(folder=each["folder"], name=each["name"], requests=each["requests"]) for each in content["cells"]
    ]
    return Sweep(started=content["started"], command=content["command"], cells=cells, code=content.get("code"))
