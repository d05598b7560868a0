"""What the mini tasks ask, kept in the user's cache: a plan, or a sweep of which nothing is left to do, needs no
lm-eval, whose import and templates take seconds.

Of the mini tasks all that decides what they ask is known and in the key: their definitions, documents and code, which
are in this package, lm-eval, its libraries and the settings. The functions of another definition may read anything.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lynx_exp.tasks.mini.dataset import FOLDER
from lynx_exp.tasks.task import TaskSpec
from lynx_exp.tasks.task_records import TaskRequest
from lynx_exp.tasks.task_settings import TaskSettings
from lynx_exp.tasks.user_cache import cache_folder, write_atomically

FORM = 1
"""Of a file."""
MOST = 200
"""Files that are kept, the latest."""
_LIBRARIES = ("lm_eval", "datasets", "jinja2", "numpy", "pyarrow", "huggingface_hub")


def cache_path(definition: Path, limit: int | None, settings: TaskSettings) -> Path | None:
    """The file that holds what the task asks, there or not yet; None for one that is not kept."""
    if definition.parent != FOLDER or settings.chat is not None or settings.think_end is not None:
        return None
    spec = [definition.name, limit, {name: value for name, value in vars(settings).items() if name != "chat"}]
    key = json.dumps([FORM, spec, _surroundings()], sort_keys=True)
    return cache_folder() / f"task-{hashlib.sha256(key.encode()).hexdigest()}.json"


def read_cached(place: Path) -> TaskSpec | None:
    """None where there is no such file, or one that is not as it was written."""
    try:
        digest, text = place.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if digest.decode(errors="replace") != hashlib.sha256(text).hexdigest():
        return None
    try:
        held = json.loads(text)
        return TaskSpec(**held | {"requests": tuple(map(_request, held["requests"]))})
    except (ValueError, TypeError, KeyError):
        return None


def write_cached(place: Path, spec: TaskSpec) -> None:
    text = json.dumps(asdict(spec))
    write_atomically(place, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    with suppress(OSError):
        files = sorted(place.parent.glob("task-*.json"), key=lambda file: file.stat().st_mtime_ns)
        for file in files[:-MOST]:
            file.unlink(missing_ok=True)


def _request(held: dict[str, Any]) -> TaskRequest:
    processing = tuple((name, _frozen(value)) for name, value in held["processing"])
    return TaskRequest(**held | {"until": tuple(held["until"]), "processing": processing})


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


@cache
def _surroundings() -> str:
    """Hash of all else that decides what a mini task asks."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256(json.dumps([sys.version, [version(name) for name in _LIBRARIES]]).encode())
    for file in sorted(_own(package)):
        total.update(file.relative_to(package).as_posix().encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    for file in sorted(_lm_eval_files()):  # where somebody edits it in place, its version stays
        held = file.stat()
        total.update(f"{file} {held.st_size} {held.st_mtime_ns}\n".encode())
    return total.hexdigest()


def _own(package: Path) -> Iterator[Path]:
    for part in ("tasks", "engine"):  # the engine says what is followed of `generation_kwargs`
        yield from (file for file in (package / part).rglob("*") if file.suffix in (".py", ".yaml", ".jsonl"))


def _lm_eval_files() -> Iterator[Path]:
    """Its code, without the folders of its own tasks, which are thousands of files."""
    spec = find_spec("lm_eval")  # does not import it
    assert spec is not None and spec.submodule_search_locations, "lm-eval is a dependency of this package"
    for folder in (Path(place) for place in spec.submodule_search_locations):
        yield from folder.glob("*.py")
        yield from (folder / "tasks").glob("*.py")
        for part in ("api", "config", "filters"):
            yield from (folder / part).rglob("*.py")
