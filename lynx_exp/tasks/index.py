"""lm-eval's own index of its tasks, groups and tags: built by lm-eval once, then read from a file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

from lynx_exp.tasks.user_cache import cache_folder, write_atomically

FORM = 1
"""Of the file."""

_GROUP_FIELDS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag", "include", "version")
"""Of a group's definition what does not change its tasks."""

Entry = TypedDict("Entry", {"path": str, "members": list[str], "not": str}, total=False)
"""Of a task its file, below the folder of tasks; of a group or a tag the names of its members; or why it cannot run."""
Index = Mapping[str, Entry]


def cached_index(folder: Path) -> Index | None:
    """The index of the tasks in `folder`, if its file is there."""
    path = _file(folder)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, RecursionError):
        return None


@lru_cache(maxsize=1)
def _read(path: Path, _modified: int) -> Index:
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold an object")
    return found


def index_of(folder: Path) -> Index:
    """The index, from its file or made anew: that reads thousands of definitions, which takes seconds."""
    return cached_index(folder) or _build(folder)


@cache
def _build(folder: Path) -> Index:
    from lm_eval.tasks._index import Kind, TaskIndex

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of names that two files define
    try:
        entries = TaskIndex.build([folder])
    finally:
        logging.disable(level)
    made: dict[str, Entry] = {}
    for name, entry in entries.items():
        if entry.kind is Kind.TAG:
            made[name] = {"members": sorted(entry.tags)}
        elif entry.kind is Kind.GROUP:
            made[name] = group_entry(entry.cfg or {})
        else:
            made[name] = {"path": str(Path(str(entry.yaml_path)).relative_to(folder))}
    write_atomically(_file(folder), json.dumps(made))
    return made


def group_entry(definition: Mapping[str, object]) -> Entry:
    """A group's entry. One that changes its members is refused: then they are other tasks than those of their names."""
    members = definition.get("task")
    changed = sorted(set(definition) - set(_GROUP_FIELDS))
    if changed:
        return {"not": f"is a group that changes its tasks ({', '.join(changed)}); name the tasks themselves"}
    names = [_name_of(member) for member in (members if isinstance(members, list) else [members])]
    plain = [name for name in names if name is not None]
    if not plain or len(plain) < len(names):
        return {"not": "is a group that defines or changes tasks of its own; name the tasks themselves"}
    return {"members": plain}


def _name_of(member: object) -> str | None:
    """Of a task that a group takes as it is; None for one that it defines or changes."""
    if isinstance(member, Mapping) and set(member) <= {"task", "task_alias"}:
        member = member.get("task")
    return member if isinstance(member, str) else None


def _file(folder: Path) -> Path:
    """Of this lm-eval at this place: another version, or another folder, has a file of its own."""
    key = json.dumps([FORM, version("lm_eval"), str(folder), folder.stat().st_mtime_ns])
    return cache_folder() / f"lm_eval_tasks-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
