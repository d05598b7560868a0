"""Download every model and data set that a sweep needs, so that it runs on a machine without a network."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.config import Config, config_folder, to_config

if TYPE_CHECKING:
    from hydra._internal.callbacks import Callbacks

    from lynx_exp.prepare.hub import Entry, HubModel, HubTask

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
UNITS = ("B", "kB", "MB", "GB", "TB")
SHORT = 12
"""Digits of a commit that are shown."""


@dataclass(frozen=True)
class Needs:
    """What a sweep's jobs take from the hub, and what they have already."""

    models: list[HubModel]
    tasks: list[HubTask]
    local: list[str]
    """Names of models and tasks that need no hub, in the order of their first use."""


def prefetch(arguments: Sequence[str], *, multirun: bool = False, dry_run: bool = False) -> None:
    """Fetch what the jobs of `lynx-exp ARGUMENTS` (`-m`: `multirun`) need, or with `dry_run` say what that is.

    ValueError for a bad argument before anything is fetched, and at the end for what could not be: by then everything
    else is there.
    """
    configs = jobs(arguments, multirun)
    _refuse_offline()
    wanted = needs(configs)
    _show_bars(sys.stderr.isatty())
    sources: list[HubModel | HubTask] = [*wanted.models, *wanted.tasks]  # a chat template needs its model's tokenizer
    plan = [_tried(source.query, source) for source in sources]
    _print_plan(plan, wanted.local)
    if dry_run:
        return _raise_failed(plan)
    _refuse_full_disk(plan)
    done = []
    for source, seen in zip(sources, plan, strict=True):
        if seen.state != "failed":
            print(f"{seen.kind} {seen.name} ...", file=sys.stderr, flush=True)
            seen = _tried(partial(source.fetch, seen), source, seen)
        done.append(seen)
    if not done:
        return None
    print(f"\nIn {_place()}:\n{table(done)}")
    _raise_failed(done)
    command = " ".join(["lynx-exp", *(["-m"] if multirun else []), *arguments])
    print(f"\nWithout a network, with this HF_HOME:\n  HF_HUB_OFFLINE=1 {command}")


def jobs(arguments: Sequence[str], multirun: bool) -> list[Config]:
    """The configs of the jobs that `lynx-exp ARGUMENTS` runs, one of those that differ in their policies only.

    ValueError or a Hydra error for a bad argument.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, RunMode
    from omegaconf import DictConfig

    from lynx_exp.run.launchers.plugin import LynxLauncher, LynxSweeper
    from lynx_exp.run.launchers.register import register

    class Collect(LynxLauncher):
        """Composes the jobs and runs none."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            # a policy needs nothing of the hub, and most of a sweep's time goes into composing
            distinct = dict.fromkeys(tuple(word for word in words if not _sets_policy(word)) for words in job_overrides)
            self.configs = [to_config(self._compose(list(words))) for words in distinct]
            return []

    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None

        def whole(validate: bool) -> DictConfig:
            return hydra.compose_config(
                "config",
                list(arguments),
                run_mode=RunMode.MULTIRUN,
                from_shell=False,
                validate_sweep_overrides=validate,
            )

        if not multirun and whole(validate=False).hydra.mode != RunMode.MULTIRUN:
            return [to_config(compose("config", list(arguments)))]
        config = whole(validate=True)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=_no_callbacks())
        collect = Collect()
        collect.setup(hydra_context=context, task_function=lambda _: None, config=config)
        given = config.hydra.sweeper
        sweeper = LynxSweeper(
            *(dict(given.params or {}), list(given.cells), list(given.controls), list(given.studies)),
            scale=given.scale,
            scales=given.scales,
        )
        sweeper.hydra_context, sweeper.launcher, sweeper.config = context, collect, config
        sweeper.sweep(list(config.hydra.overrides.task))
        return collect.configs


def _sets_policy(word: str) -> bool:
    key = word.lstrip("+~").partition("=")[0]
    return key == "policy" or key.startswith("policy.")


def _no_callbacks() -> Callbacks:
    from hydra._internal.callbacks import Callbacks

    return Callbacks()


def needs(configs: Sequence[Config]) -> Needs:
    """Each model, and each task at each revision, once. ValueError for an unknown task or a missing folder."""
    from lynx_exp.prepare.hub import HubModel, HubTask
    from lynx_exp.tasks import mini_tasks
    from lynx_exp.tasks.data import HUB
    from lynx_exp.tasks.definition import members_of

    models: dict[HubModel, None] = {}
    tasks: dict[tuple[str, str | None], HubTask] = {}
    local: dict[str, None] = {}
    for config in configs:
        model = HubModel.of(config.model)
        if model is None:
            local[config.model.id] = None
        else:
            models[model] = None
        for name in [member for asked in config.task.subtasks for member in members_of(asked)]:
            key = name, config.task.revision
            if name in mini_tasks() or config.task.data != HUB:
                local[name] = None
            elif key not in tasks:
                task = tasks[key] = HubTask(name, config)
                if task.repo is None:
                    local[name] = None
    return Needs(list(models), [task for task in tasks.values() if task.repo is not None], list(local))


def _tried(act: Callable[[], Entry], source: HubModel | HubTask, seen: Entry | None = None) -> Entry:
    """What `act` gives; if it fails, the row says why and the others go on."""
    from lynx_exp.prepare.hub import HubModel

    repo = source.id if isinstance(source, HubModel) else str(source.repo)
    try:
        return act()
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        return (seen or source.entry()).failed(error, repo)


def _raise_failed(entries: Sequence[Entry]) -> None:
    reasons: dict[str, dict[str, None]] = {}
    for entry in entries:
        if entry.state == "failed":
            reasons.setdefault(entry.reason, {})[entry.name] = None
    if reasons:
        named = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        raise ValueError(f"could not be fetched: {named}")


def _refuse_offline() -> None:
    for name in OFFLINE:
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise ValueError(
                f"{name}={os.environ[name]}: nothing can be fetched with it; unset it where there is network"
            )


def _refuse_full_disk(plan: Sequence[Entry]) -> None:
    need = sum(entry.missing or 0 for entry in plan if entry.state == "to fetch")
    free = shutil.disk_usage(next(folder for folder in (_home(), *_home().parents) if folder.exists())).free
    if need > free:
        raise ValueError(
            f"HF_HOME={_shown(_home())}: {size_text(need)} are to be fetched and {size_text(free)} are free; "
            "give another folder, or fewer models"
        )


def _show_bars(wanted: bool) -> None:
    """huggingface's own, on a terminal only."""
    import datasets
    from huggingface_hub.utils import disable_progress_bars

    if not wanted:
        disable_progress_bars()
        datasets.disable_progress_bars()


def _home() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def _place() -> str:
    import datasets
    from huggingface_hub import constants

    caches = Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)
    if all(cache.is_relative_to(_home()) for cache in caches):
        return f"{_shown(_home())} (HF_HOME)"
    return f"{_shown(caches[0])} (HF_HUB_CACHE) and {_shown(caches[1])} (HF_DATASETS_CACHE)"


def _shown(path: Path) -> str:
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def size_text(size: int | None) -> str:
    """In the hub's own units: powers of 1000."""
    if size is None:
        return "unknown"
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{size} B"


def _print_plan(plan: Sequence[Entry], local: Sequence[str]) -> None:
    if plan:
        print(table(plan))
    missing = [entry for entry in plan if entry.state == "to fetch"]
    known = sum(entry.missing or 0 for entry in missing)
    more = ", and what the hub tells no size of" if any(entry.missing is None for entry in missing) else ""
    if missing:
        print(f"To fetch: {size_text(known)}{more}, to {_place()}.")
    elif all(entry.state == "already there" for entry in plan):
        print("Nothing to fetch.")
    if local:
        print(f"No hub needed: {', '.join(local)}.")


def table(entries: Sequence[Entry]) -> str:
    """One row each: name, revision, size, state."""
    rows = [("", "NAME", "REVISION", "SIZE", "STATE")]
    for entry in entries:
        partly = entry.state == "to fetch" and entry.missing is not None and entry.missing < (entry.size or 0)
        state = f"to fetch: {size_text(entry.missing)} of it" if partly else str(entry.state)
        of = f"{entry.name} ({entry.task})" if entry.task else entry.name
        why = f": {entry.reason}" if entry.reason else ""
        rows.append((entry.kind, of, entry.revision[:SHORT], size_text(entry.size), state + why))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
    )
