"""The fields of a task's definition that this package reads or sets; lm-eval knows more, which stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from datasets import Dataset


class Fewshot(TypedDict, total=False):
    """`fewshot_config`: where the examples before a prompt come from."""

    split: str | None
    samples: object


class TaskDefinition(TypedDict, total=False):
    """The YAML file of one task, its includes and functions resolved."""

    task: str
    dataset_path: str | None
    dataset_name: str | None
    dataset_kwargs: dict[str, object] | None
    custom_dataset: Callable[..., Mapping[str, Dataset]]
    """Split -> documents, in place of a data set of the hub."""
    test_split: str | None
    validation_split: str | None
    training_split: str | None
    fewshot_split: str | None
    fewshot_config: Fewshot | None
    num_fewshot: int | None
    doc_to_text: object
    doc_to_target: object
