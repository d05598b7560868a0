"""What the hub has of a model or a data set, what of that is in the local cache, and fetching the rest."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lynx_exp.config import Config, ModelConfig

if TYPE_CHECKING:
    from datasets import DatasetBuilder

    from lynx_exp.tasks.yaml_definition import TaskDefinition

State = Literal["to fetch", "already there", "fetched", "failed"]
TEXTS = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm")
"""Endings of configurations, tokenizers and chat templates, which are small."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the plan, and later of the outcome."""

    kind: Literal["model", "data set"]
    name: str
    revision: str
    """The commit, once that is known."""
    size: int | None = None
    """Bytes of all files; None where the hub does not tell."""
    missing: int | None = None
    """Those of them that are not in the cache."""
    state: State = "to fetch"
    task: str = ""
    """Whose documents a data set has."""
    reason: str = ""
    """Of a failure."""

    def failed(self, error: BaseException, repo: str) -> Entry:
        return replace(self, state="failed", reason=explain_failure(error, repo))


def model_files(names: Sequence[str], *, code: bool) -> list[str]:
    """Of a repository's files, those that transformers reads: the weights once, as safetensors if there are any, and
    what is small. Not: weights in other forms (original/, consolidated, GGUF, ONNX), pictures, texts."""
    top = [name for name in names if "/" not in name]
    weights = [
        name for name in top if name.endswith(".safetensors") and not name.startswith(("consolidated", "adapter_"))
    ]
    if "model.safetensors" in weights and "model.safetensors.index.json" not in top:
        weights = ["model.safetensors"]
    if not weights:
        weights = [name for name in top if name.startswith("pytorch_model") and name.endswith(".bin")]
    small = [name for name in top if name.endswith(TEXTS) and not name.startswith("consolidated")]
    small += [name for name in names if name.startswith("additional_chat_templates/")]
    scripts = [name for name in names if code and name.endswith(".py")]
    return sorted({*weights, *small, *scripts})


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model that a sweep loads from the hub."""

    id: str
    revision: str | None
    trust_remote_code: bool

    @classmethod
    def of(cls, model: ModelConfig) -> HubModel | None:
        """None for one that needs no hub. ValueError for a folder that does not exist."""
        if model.kind != "hub":
            return None
        from lynx_exp.models import locate

        try:
            if Path(locate(model.id)).is_dir():
                return None
        except ValueError as error:
            raise ValueError(f"model.id={model.id}: {str(error).partition(': ')[2]}") from error
        return cls(id=model.id, revision=model.revision, trust_remote_code=model.trust_remote_code)

    def entry(self) -> Entry:
        return Entry(kind="model", name=self.id, revision=self.revision or "main")

    def query(self) -> Entry:
        """Ask the hub. Raises what huggingface_hub raises."""
        from huggingface_hub import HfApi, try_to_load_from_cache
        from huggingface_hub.hf_api import RepoFile

        api = HfApi()
        commit = api.model_info(self.id, revision=self.revision).sha
        tree = api.list_repo_tree(self.id, recursive=True, revision=commit)
        sizes = {file.path: file.size for file in tree if isinstance(file, RepoFile)}
        wanted = model_files(list(sizes), code=self.trust_remote_code)
        there = [name for name in wanted if isinstance(try_to_load_from_cache(self.id, name, revision=commit), str)]
        return replace(
            self.entry(),
            revision=str(commit),
            size=sum(sizes[name] for name in wanted),
            missing=sum(sizes[name] for name in wanted if name not in there),
            state="already there" if len(there) == len(wanted) and self._known(str(commit)) else "to fetch",
        )

    @property
    def _cache(self) -> Path:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.id, repo_type="model")

    def _known(self, commit: str) -> bool:
        """Whether the name of the revision leads to this commit without a network."""
        if self.revision == commit:
            return True
        ref = self._cache / "refs" / (self.revision or "main")
        return ref.is_file() and ref.read_text() == commit

    def fetch(self, seen: Entry) -> Entry:
        """Everything that is missing. ValueError before the weights are fetched for what is not an MoE model."""
        from huggingface_hub import HfApi, snapshot_download

        from lynx_exp.run.model_facts import inspect_model

        inspect_model(ModelConfig(kind="hub", id=self.id, revision=self.revision))
        names = HfApi().list_repo_files(self.id, revision=seen.revision)
        wanted = model_files(names, code=self.trust_remote_code)
        with _ends_at_once(self._cache / "blobs"):
            folder = snapshot_download(self.id, revision=self.revision, allow_patterns=wanted)
        if self.trust_remote_code:
            for repo in _code_elsewhere(Path(folder) / "config.json"):
                snapshot_download(repo, allow_patterns=["*.py"])
        state: State = seen.state if seen.state == "already there" else "fetched"
        return replace(seen, revision=Path(folder).name, state=state)


@contextmanager
def _ends_at_once(blobs: Path) -> Iterator[None]:
    """Ctrl-C ends the process here: huggingface_hub would wait for its threads, each with gigabytes to go. What it
    would remove then, files that are begun and that no later download continues, goes from `blobs`."""
    others = set(blobs.glob("*.incomplete"))

    def end(*_: object) -> None:
        from lynx_exp.exits import INTERRUPTED
        from lynx_exp.prepare.interrupted import INTERRUPTED_LINE

        for begun in set(blobs.glob("*.incomplete")) - others:
            begun.unlink(missing_ok=True)
        print(f"\nlynx-prepare: {INTERRUPTED_LINE['prefetch']}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(INTERRUPTED)

    if threading.current_thread() is not threading.main_thread():  # no place for a signal's handler
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _code_elsewhere(config: Path) -> list[str]:
    """Repositories that `auto_map` takes code from: `OWNER/NAME--module.Class`."""
    named = json.loads(config.read_text()).get("auto_map") or {}
    values = [value for entry in named.values() for value in (entry if isinstance(entry, list) else [entry])]
    return sorted({value.partition("--")[0] for value in values if isinstance(value, str) and "--" in value})


@dataclass(frozen=True)
class HubTask:
    """A task whose documents come from the hub."""

    name: str
    config: Config
    """A cell that asks it; others with the same data set need nothing more."""

    @cached_property
    def definition(self) -> TaskDefinition:
        """ValueError if there is no such task."""
        from lynx_exp.tasks.definition import find_definition, read_definition

        return read_definition(find_definition(self.name))

    @cached_property
    def repo(self) -> str | None:
        """The data set's repository; None if the task needs none: its documents are elsewhere."""
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as FORMATS

        path = self.definition.get("dataset_path")
        elsewhere = not path or path in FORMATS or Path(path).is_dir() or self.definition.get("custom_dataset")
        return None if elsewhere else str(path)

    def entry(self) -> Entry:
        name = " ".join(part for part in (self.repo, self.definition.get("dataset_name")) if part)
        return Entry(kind="data set", name=name, revision=self.config.task.revision or "main", task=self.name)

    def query(self) -> Entry:
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(str(self.repo), revision=self.config.task.revision).sha
        builder = self._builder()
        prefix = f"hf://datasets/{self.repo}@{commit}/"
        files = [str(file) for split in (builder.config.data_files or {}).values() for file in split]
        paths = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
        sizes = [
            info.size
            for info in HfApi().get_paths_info(str(self.repo), paths, revision=commit, repo_type="dataset")
            if hasattr(info, "size")
        ]
        size = sum(sizes) if sizes and len(paths) == len(files) else None
        there = (Path(builder.cache_dir) / "dataset_info.json").is_file()
        return replace(
            self.entry(),
            revision=str(commit),
            size=size,
            missing=0 if there else size,
            state="already there" if there else "to fetch",
        )

    def fetch(self, seen: Entry) -> Entry:
        """Download and convert all splits, then load the task once: what else it needs comes with that."""
        from lynx_exp.run.load_tasks import settings_of
        from lynx_exp.tasks import load_task

        self._builder().download_and_prepare()  # `load_task` is silent: the bars are shown here
        plain = replace(self.config, task=replace(self.config.task, apply_chat_template=False))
        loaded = load_task(self.name, limit=1, settings=settings_of(plain))
        state: State = seen.state if seen.state == "already there" else "fetched"
        return replace(seen, revision=loaded.revision or seen.revision, state=state)

    def _builder(self) -> DatasetBuilder:
        from datasets import load_dataset_builder

        kwargs = self.definition.get("dataset_kwargs") or {}
        given = {key: value for key, value in kwargs.items() if key not in ("trust_remote_code", "revision")}
        revision = self.config.task.revision or kwargs.get("revision")
        return load_dataset_builder(str(self.repo), self.definition.get("dataset_name"), revision=revision, **given)


def explain_failure(error: BaseException, repo: str) -> str:
    """Why the hub did not give `repo`, in one line."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    login = "accept its licence on its page of the hub and log in with `hf auth login`"
    if "GatedRepoError" in kinds or "gated dataset" in str(error):  # datasets hides its cause
        return f"gated: {login}"
    if "RepositoryNotFoundError" in kinds:
        return f"no such repository, or one that is not open to you: look at its name, or {login}"
    if "RevisionNotFoundError" in kinds:
        return "the hub has no such revision of it"
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        return "no space left on the disk"
    unreachable = {"ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "RemoteProtocolError"}
    if kinds & (unreachable | {"OfflineModeIsEnabled", "ConnectionError"}):
        return "the hub cannot be reached; try the same command again"
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status is not None:
            return f"the hub answers {status}; try the same command again"
    lines = str(error).strip().splitlines()
    return lines[0].removeprefix(f"model.id={repo}: ") if lines else type(error).__name__
