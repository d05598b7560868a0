"""A task's documents: from the hub as lm-eval loads them, or from local files with the same fields, without a cache."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hub"
ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


def with_local_data(config: Mapping[str, Any], data: str) -> dict[str, Any]:
    """A task's definition whose documents come from `data`: a file, or a folder.

    A file holds the documents that are asked. In a folder, the documents of a split are those of the first that exists
    of TASK/SPLIT, TASK-SPLIT, TASK and SPLIT, with one of `ENDINGS`. Few-shot examples come from the definition's own
    samples, else from its few-shot or training split, else, where no file holds that, from the asked documents other
    than the one that they stand before. ValueError names what is missing.
    """
    asked = str(config.get("test_split") or config.get("validation_split"))
    name, where = config["task"], Path(data).expanduser()
    files = _files(where, name, _splits(config))
    if asked not in files:
        tried = ", ".join(f"{stem}{{{','.join(ENDINGS)}}}" for stem in _stems(name, asked))
        raise ValueError(
            f"task.data={data}: has no documents for {name}; looked in the folder for {tried}"
            if where.is_dir()
            else f"task.data={data}: no such file or folder; give hub, a file ({', '.join(ENDINGS)}) or a folder"
        )
    local = dict(config)
    local |= {"dataset_path": None, "dataset_name": None, "dataset_kwargs": None}
    local["custom_dataset"] = LocalData(tuple(sorted(files.items())))
    local["training_split"] = config.get("training_split") if config.get("training_split") in files else None
    if not has_samples(config):
        if config.get("fewshot_split") not in files:
            local["fewshot_split"] = local["training_split"] or asked
        if isinstance(config.get("fewshot_config"), Mapping) and config["fewshot_config"].get("split") not in files:
            local["fewshot_config"] = {key: value for key, value in config["fewshot_config"].items() if key != "split"}
    return local


def has_samples(config: Mapping[str, Any]) -> bool:
    """Whether a definition brings its own examples."""
    return bool((config.get("fewshot_config") or {}).get("samples"))


def _splits(config: Mapping[str, Any]) -> list[str]:
    fewshot = config.get("fewshot_config") or {}
    named = [config.get(f"{kind}_split") for kind in ("test", "validation", "training", "fewshot")]
    return list(dict.fromkeys(split for split in [*named, fewshot.get("split")] if split))


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

    def __call__(self, **_: Any) -> dict[str, Dataset]:
        """Split -> documents. Arguments are those of the definition's metadata; they change nothing."""
        from datasets import Dataset  # slow to import

        return {split: Dataset.from_list(read_rows(path)) for split, path in self.files}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The documents of one file. ValueError if they cannot be read, naming the line of JSON Lines."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
            rows = _json_rows(text, path)
    except (OSError, EOFError, UnicodeDecodeError) as error:  # pyarrow's errors are among them, or of ValueError
        raise ValueError(f"task.data: {path} cannot be read: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        text = str(error).splitlines()[0]
        raise ValueError(text if text.startswith("task.data") else f"task.data: {path}: {text}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"task.data: {path}: must hold at least one document, each an object with the task's fields")
    return rows


def _json_rows(text: str, path: Path) -> list[Any]:
    """JSON Lines; or one JSON value: a list of documents."""
    if path.name.endswith((".json", ".json.gz")):
        try:
            whole = json.loads(text)
        except ValueError:
            pass  # many files named .json hold lines
        else:
            return whole if isinstance(whole, list) else [whole]
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"task.data: {path}, line {number}: not JSON ({error})") from error
    return rows


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
