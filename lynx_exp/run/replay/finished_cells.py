"""A finished cell with its tasks made anew from its own config: all that scoring needs, and no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lynx_exp.config import Config, to_config
from lynx_exp.run.load_tasks import LoadTask, tasks_of
from lynx_exp.store.done import read_done
from lynx_exp.store.files import sha256_of
from lynx_exp.store.read import CellRecord, read_cells
from lynx_exp.store.reading import read_value
from lynx_exp.store.tables import prompt_hash
from lynx_exp.tasks.load_task import load_task
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    from lynx_exp.run.planned_cell import Task
    from lynx_exp.store.row_types import ResponseRow


@dataclass(frozen=True, kw_only=True)
class StoredCell:
    record: CellRecord
    config: Config
    tasks: tuple[Task, ...]
    responses: dict[str, list[ResponseRow]]
    """Of each task, rows of the responses table in the order of its requests, without fillers."""


def done_cells(root: Path) -> list[CellRecord]:
    """Those at or below `root`. ValueError if there is none."""
    found = [record for record in read_cells(root) if record.done]
    if not found:
        raise ValueError(f"{root}: holds no finished cell; give a cell, a study (results/STUDY) or a folder above")
    return found


def open_stored(
    record: CellRecord, *, sandbox: str | None = None, confirm_unsafe_code: bool = False, load: LoadTask = load_task
) -> StoredCell:
    """The cell, if its tasks are still what it was asked: else ValueError says what has changed. `sandbox`: in place of
    the config's."""
    config = read_config(record.path / "config.yaml")
    if sandbox is not None:
        config = replace(config, sandbox=sandbox, confirm_unsafe_code=confirm_unsafe_code)
    tasks = tasks_of(config, load, config.limit)
    _check_file(record.path, "responses.parquet")
    rows: list[ResponseRow] = [row for row in record.responses().to_pylist() if not row["filler"]]
    responses = {}
    for task in tasks:
        names = {task.name, *(member.name for member in task.members)}
        own = sorted((row for row in rows if row["subtask"] in names), key=lambda row: row["request"])
        _check_task(task, record.provenance.get("data_sha256", {}).get(task.name), own)
        responses[task.name] = own
    return StoredCell(record=record, config=config, tasks=tasks, responses=responses)


def read_config(path: Path) -> Config:
    """The checked config that a cell was run with."""
    read_value(path)
    try:
        stored = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        assert isinstance(stored, DictConfig)
        return to_config(stored)
    except (OSError, OmegaConfBaseException, YAMLError) as error:
        line = first_line(error)
        raise ValueError(f"config.yaml: not one that this version reads: {line}") from error


def _check_file(folder: Path, name: str) -> None:
    files = read_done(folder)["files"]
    if name not in files or files[name] != sha256_of(folder / name):
        raise ValueError(f"{name}: is not the file that the cell wrote; run the cell again (remove its DONE)")


def _check_task(task: Task, digest: str | None, rows: Sequence[ResponseRow]) -> None:
    """ValueError unless the task asks what the rows answer."""
    if digest == task.data_digest and len(rows) == len(task.requests):
        return
    if digest is None:
        raise ValueError(
            f"provenance.json: data_sha256 has no hash of {task.name}: what the cell answered cannot be known; run it "
            "again (remove its DONE)"
        )
    hashes = [prompt_hash(request.prompt) for request in task.requests]
    other = sum(1 for row, prompt in zip(rows, hashes, strict=False) if row["prompt_hash"] != prompt)
    what = "the prompts are the same; its targets, examples' settings or lm-eval's version of it are not"
    if len(rows) != len(hashes):
        what = f"it has {len(hashes)} requests now, and had {len(rows)}"
    elif other:
        what = f"{other} of {len(hashes)} prompts are others now"
    raise ValueError(f"{task.name}: no longer what the cell answered: {what}; a new run (lynx-exp) is a new cell")
