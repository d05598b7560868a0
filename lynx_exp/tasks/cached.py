"""Which commit of the hub a task's documents are, with a network and without."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.tasks.yaml_definition import TaskDefinition

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

COMMIT = re.compile(r"[0-9a-f]{40}")


def at_revision(config: TaskDefinition, revision: str | None) -> TaskDefinition:
    """The definition of a task from the hub, with its documents at `revision` (None: as defined, else main).

    Without a network `datasets` takes what it converted last, whichever commit that is and whichever is asked for: then
    the documents come from the folder of the commit itself. ValueError if that is asked for and not in the cache.
    """
    import datasets

    pinned, path, name = config.copy(), config.get("dataset_path"), config.get("dataset_name")
    kwargs = dict(config.get("dataset_kwargs") or {})
    if revision is not None:
        pinned["dataset_kwargs"] = kwargs = kwargs | {"revision": revision}
    if not path or not datasets.config.HF_HUB_OFFLINE or set(kwargs) - {"revision", "trust_remote_code"}:
        return pinned
    requested = kwargs.get("revision")
    folder = _converted(path, name, str(requested or "main"))
    if folder is not None:
        pinned["custom_dataset"] = CachedData(path, folder)
    elif requested is not None:
        named = f"{path} {name}" if name else path
        raise ValueError(
            f"task.revision={requested}: {named} at this revision is not in the local cache; run `lynx-prepare "
            "prefetch` with the same arguments where there is network"
        )
    return pinned


def _converted(path: str, name: str | None, revision: str) -> Path | None:
    """The folder of one commit's documents; None if there is no such, or no single one."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    commit = revision
    if not COMMIT.fullmatch(revision):
        repo = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type="dataset")
        ref = repo / "refs" / revision
        if not ref.is_file():
            return None
        commit = ref.read_text().strip()
    *owner, last = path.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(last)])
    found = [folder.parent for folder in root.glob(f"{name or '*'}/*/{commit}/dataset_info.json")]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class CachedData:
    """A data set in lm-eval's form, `custom_dataset`: what `datasets` has converted from one commit."""

    path: str
    folder: Path

    __name__ = "CachedData"

    def __call__(self, **_: object) -> dict[str, Dataset]:
        """Split -> documents. Arguments are those of the definition; they are in the choice of the folder."""
        from datasets.packaged_modules.cache.cache import Cache

        name, version, commit = self.folder.parts[-3:]
        dataset_name = self.path.split("/")[-1]
        builder = Cache(repo_id=self.path, dataset_name=dataset_name, config_name=name, version=version, hash=commit)
        return dict(builder.as_dataset())


def hub_revision(dataset: DatasetDict) -> str | None:
    """The commit of the hub that a loaded data set was made from, by the folder of its files; None if unknown."""
    for split in dict(dataset).values():
        for file in getattr(split, "cache_files", None) or ():
            commit = Path(file["filename"]).parent.name
            if COMMIT.fullmatch(commit):
                return commit
    return None
