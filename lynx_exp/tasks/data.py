"""A task's documents: from the hub as lm-eval loads them, or from local files with the same fields, without a cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.tasks.document_files import ENDINGS, misfit, read_numbered
from lynx_exp.tasks.yaml_definition import TaskDefinition
from lynx_exp.wording import first_line

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub"


class ModelUnavailable(ValueError):
    """Documents that are neither in the hub's cache nor to be had from the hub."""


def with_local_data(config: TaskDefinition, data: str) -> TaskDefinition:
    """A task's definition whose documents come from `data`: a file, or a folder.

    A file holds the documents that are asked. In a folder, the documents of a split are those of the first that exists
    of TASK/SPLIT, TASK-SPLIT, TASK and SPLIT, with one of `ENDINGS`. Few-shot examples come from the definition's own
    samples, else from its few-shot or training split, else, where no file holds that, from the asked documents other
    than the one that they stand before. ValueError names what is missing.
    """
    scored_split = str(config.get("test_split") or config.get("validation_split"))
    name, where = config["task"], Path(data).expanduser()
    files = _files(where, name, _splits(config))
    if scored_split not in files:
        tried = ", ".join(f"{stem}{{{','.join(ENDINGS)}}}" for stem in _stems(name, scored_split))
        raise ValueError(
            f"task.data={data}: has no documents for {name}; looked in the folder for {tried}"
            if where.is_dir()
            else f"task.data={data}: no such file or folder; give hub, a file ({', '.join(ENDINGS)}) or a folder"
        )
    local = config.copy()
    local |= {"dataset_path": None, "dataset_name": None, "dataset_kwargs": None}
    local["custom_dataset"] = LocalData(tuple(sorted(files.items())))
    local["training_split"] = config.get("training_split") if config.get("training_split") in files else None
    if not has_samples(config):
        if config.get("fewshot_split") not in files:
            local["fewshot_split"] = local["training_split"] or scored_split
        fewshot = config.get("fewshot_config")
        if isinstance(fewshot, dict) and fewshot.get("split") not in files:
            others = fewshot.copy()
            others.pop("split", None)
            local["fewshot_config"] = others
    return local


def has_samples(config: TaskDefinition) -> bool:
    """Whether a definition brings its own examples."""
    return bool((config.get("fewshot_config") or {}).get("samples"))


def _splits(config: TaskDefinition) -> list[str]:
    named = [config.get("test_split"), config.get("validation_split"), config.get("training_split")]
    named += [config.get("fewshot_split"), (config.get("fewshot_config") or {}).get("split")]
    return list(dict.fromkeys(split for split in named if split))


def _stems(name: str, split: str) -> tuple[str, ...]:
    return (f"{name}/{split}", f"{name}-{split}", name, split)


def _files(where: Path, name: str, splits: Sequence[str]) -> dict[str, Path]:
    """Split -> file."""
    if where.is_file():
        return {splits[0]: where}
    found: dict[str, Path] = {}
    for split in splits:
        shared = _stems(name, split) if split == splits[0] else _stems(name, split)[:2] + (split,)
        named = (where / f"{stem}{ending}" for stem in shared for ending in ENDINGS)
        path = next((path for path in named if path.is_file()), None)
        if path is not None:
            found[split] = path
    return found


@dataclass(frozen=True)
class LocalData:
    """A data set in lm-eval's form, `custom_dataset`."""

    files: tuple[tuple[str, Path], ...]
    """(split, file)"""

    __name__ = "LocalData"

    def __call__(self, **_: object) -> dict[str, Dataset]:
        """Split -> documents. Arguments are those of the definition's metadata; they change nothing."""
        return {split: _dataset(path) for split, path in self.files}


def _dataset(path: Path) -> Dataset:
    """The documents of one file, with every field that any of them has; one that lacks it has None there."""
    from datasets import Dataset  # slow to import

    numbered = read_numbered(path)
    fields = dict.fromkeys(field for _, row in numbered for field in row)
    if not fields:
        raise ValueError(f"task.data: {path}, {numbered[0][0]}: must be an object with the task's fields")
    try:
        return Dataset.from_list([dict.fromkeys(fields) | row for _, row in numbered])
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:  # pyarrow's, among them
        line = misfit(numbered, list(fields)) or first_line(error)
        raise ValueError(f"task.data: {path}, {line}") from error


def check_texts(config: TaskDefinition, data: LocalData) -> None:
    """ValueError for a document without the text that a plain template of the task asks of it: it would read "None".

    Templates that decide anything by themselves ({% if ... %}), and functions, may know what to do.
    """
    templates = [config.get("doc_to_text"), config.get("doc_to_target")]
    plain = [text for text in templates if isinstance(text, str) and "{%" not in text]
    used_fields = {field for text in plain for field in re.findall(r"\{\{-?\s*(\w+)\s*-?\}\}", text)} | set(plain)
    for _, path in data.files:
        numbered = read_numbered(path)
        known = {field for _, row in numbered for field in row}
        for where, row in numbered:
            for field in sorted(used_fields & known):
                value = row.get(field)
                if value is None or value != value:
                    found = "missing" if field not in row else "null" if value is None else "NaN"
                    raise ValueError(f"task.data: {path}, {where}: field {field} is {found}, must be a text")


def not_cached(error: BaseException, dataset: str) -> str | None:
    """The one line to say where `error` means that the hub's data set is neither cached nor to be had; else None."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    unreachable = kinds & {
        "ConnectionError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "DatasetNotFoundError",
        "ConnectTimeout",
        "ConnectError",
    }
    if not unreachable and "find cache for" not in str(error):
        return None
    return (
        f"task.data=hub: {dataset} is not in the local cache and cannot be had from the hub; run "
        "`lynx-prepare prefetch` with the same arguments where there is network, or give task.data=FILE_OR_FOLDER"
    )
