"""A task of lm-eval's with documents from local files, for lm-eval's own command: `lm_eval --include_path FOLDER`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.tasks.data import LocalData, with_local_data
from lynx_exp.tasks.definition import find_definition, mini_tasks, read_definition

if TYPE_CHECKING:
    from datasets import Dataset

OVERRIDDEN = ("dataset_path", "dataset_name", "training_split", "fewshot_split", "fewshot_config")
"""What local files may change of a definition, besides where its documents come from."""


def write_lm_eval_task(name: str, data: str, folder: Path) -> Path:
    """Write `folder/NAME.yaml`, which takes the definition from where it lies on this machine and the documents from
    `data`, a file or a folder of files as in `task.data=` of lynx-exp. The file.

    ValueError for an unknown task, one whose documents are in this package, or `data` without its documents.
    """
    import yaml

    if name in mini_tasks():
        raise ValueError(f"task={name}: has its documents in this package; give lm_eval --include_path that folder")
    path = find_definition(name)
    definition = read_definition(path)
    local = with_local_data(definition, data)
    documents = local["custom_dataset"]
    assert isinstance(documents, LocalData)
    changed: dict[str, object] = {"include": str(path.resolve()), "task": definition["task"]}
    changed |= {key: local.get(key) for key in OVERRIDDEN if local.get(key) != definition.get(key)}
    changed["dataset_kwargs"] = {"files": {split: str(file.resolve()) for split, file in documents.files}}
    try:
        text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:  # a function among the settings of its examples
        raise ValueError(f"task={name}: its examples' settings cannot be written down: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', definition['task'])}.yaml"
    written.write_text(
        f"# lm-eval's {definition['task']} with the documents of local files: lm_eval --include_path THIS_FOLDER\n"
        f"{text}custom_dataset: !function {read_files.__module__}.{read_files.__name__}\n",
        encoding="utf-8",
    )
    return written


def read_files(files: Mapping[str, str], **_: object) -> dict[str, Dataset]:
    """The data set of such a file, as lm-eval's `custom_dataset` wants it: split -> documents. Further arguments are
    those of the task's metadata; they change nothing."""
    return LocalData(tuple((split, Path(file)) for split, file in files.items()))()
