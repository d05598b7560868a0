"""Writing to Weights & Biases itself: one run a cell, one a study. Whoever calls this may have to wait, or to catch."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.store.files import read_json, sha256_of, write_json
from lynx_exp.store.read import CellRecord
from lynx_exp.tracking import run_content as content
from lynx_exp.tracking.study_content import Table

if TYPE_CHECKING:
    from wandb import Run
    from wandb.sdk.wandb_setup import _WandbSetup as Setup

INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 120.0


class Unreachable(Exception):
    """The server does not answer, or does not let us in: what comes next would fare the same."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where runs go."""

    project: str
    entity: str | None
    mode: str
    """offline or online."""
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, tracker: object, **others: str | None) -> Place:
        """From a config's `tracker`, if it is one; `others` that are not None take the place of its values."""
        told = tracker if isinstance(tracker, Mapping) else {}
        given = {name: told.get(name) for name in ("project", "entity", "mode", "tags")}
        given |= {name: value for name, value in others.items() if value is not None}
        return cls(**given | {"tags": tuple(given["tags"] or ())})


def log_cell(record: CellRecord, place: Place) -> str:
    """Log a finished cell; the same cell is the same run, which is updated. Returns the run's id.

    A run that the server has already keeps its curves, which a cell never changes; its config, summary, samples and
    files are written anew. Offline, an older copy of the run is removed.
    """
    import wandb

    about = content.init_arguments(record)
    run = _init(place, record.path.parent, about)
    try:
        _define(run)
        for row in list(content.curves(record))[run.starting_step :]:  # a killed process may have left some to do
            run.log({name: _shown(value) for name, value in row.items()})
        columns = list(content.SAMPLE_COLUMNS)
        run.log({"samples": wandb.Table(columns=columns, data=content.samples(record), allow_mixed_types=True)})
        run.summary.update(content.summary(record))
        artifact = wandb.Artifact(f"cell-{about['id']}", type="records", metadata=content.config(record)["cell"])
        for file in (record.path / "config.yaml", *content.files(record)):
            artifact.add_file(str(file), name=file.name, policy="immutable")
        run.log_artifact(artifact)
    except BaseException:
        _abandon(run)
        raise
    _finish(run)
    _forget_older(record.path.parent, about["id"], run)
    _note(record, place)
    return about["id"]


def log_study(
    study: Path, place: Place, *, name: str, tables: Mapping[str, Table],
    figures: Sequence[Path],
) -> str:  # fmt: skip
    """Log what all cells of a study say together: tables (columns, rows) and figures, as pictures and as files."""
    import wandb

    identity = content.run_id("study", name)
    about = content.InitArguments(id=identity, name=f"{name} analysis", group=name, job_type="analysis")
    run = _init(place, study, about)
    try:
        for title, (columns, rows) in tables.items():
            run.log({title: wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})
        pictures = [file for file in figures if file.suffix == ".png"]
        if pictures:
            run.log({f"figures/{file.stem}": wandb.Image(str(file)) for file in pictures})
        if figures:
            artifact = wandb.Artifact(f"figures-{about['id']}", type="figures")
            for file in figures:
                artifact.add_file(str(file), name=file.name, policy="immutable")
            run.log_artifact(artifact)
    except BaseException:
        _abandon(run)
        raise
    _finish(run)
    _forget_older(study, about["id"], run)
    return about["id"]


def end() -> None:
    """End wandb's process, and wait for it. Left to the end of this one, Ctrl-C meanwhile would print a stack trace."""
    import wandb

    with suppress(SystemExit):  # with the code of that process, of which each run has told already
        wandb.teardown()


def one_line(error: BaseException) -> str:
    """What it says, to stand within a sentence."""
    return " ".join(str(error).split()).rstrip(".")


def is_logged(record: CellRecord, place: Place) -> bool:
    """Whether the cell, as it is now, has been uploaded to this place from here."""
    return read_json(_note_path(record)) == _stamp(record, place)


def _init(place: Place, folder: Path, about: content.InitArguments) -> Run:
    import wandb

    online = place.mode == "online"
    settings = wandb.Settings(
        silent=True,
        console="off",
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host="",  # neither in the store nor here
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
    )
    _quiet()
    try:
        return wandb.init(
            project=place.project,
            entity=place.entity,
            mode="online" if online else "offline",
            dir=str(folder),
            resume="allow" if online else None,
            reinit="create_new",
            settings=settings,
            id=about["id"],
            name=about["name"],
            group=about["group"],
            job_type=about["job_type"],
            tags=[*place.tags, *about.get("tags", ())],
            config=about.get("config"),
        )
    except (wandb.errors.Error, OSError, TimeoutError) as error:
        if online:
            raise Unreachable(f"{type(error).__name__}: {one_line(error)}") from error
        raise


def _quiet() -> Setup:
    """wandb's global state, which must be told before a run that nothing is to be said."""
    import wandb

    return wandb.setup(settings=wandb.Settings(silent=True))


def _define(run: Run) -> None:
    run.define_metric(content.STEP, hidden=True, summary="none")
    run.define_metric("steps/*", step_metric=content.STEP, summary="none")


def _shown(value: object) -> object:
    import wandb

    return wandb.Histogram(np_histogram=value) if isinstance(value, tuple) else value


def _finish(run: Run) -> None:
    try:
        run.finish()
    except TimeoutError as error:
        raise Unreachable(f"an upload did not end within {FINISH_TIMEOUT_S:g} s") from error


def _abandon(run: Run) -> None:
    """Close what failed; how that goes no longer matters."""
    try:
        run.finish(exit_code=1)
    except BaseException as error:
        if not isinstance(error, Exception):
            raise


def _forget_older(study: Path, identity: str, run: Run) -> None:
    """Remove local copies of the run from before. One that was begun later is another process's, which will remove
    this one in its turn: so the last always stays."""
    if not run.dir:
        return
    kept = Path(run.dir).parent
    for pattern in (f"offline-run-*-{identity}*", f"run-*-{identity}*"):
        for folder in (study / "wandb").glob(pattern):
            if _begun(folder) < _begun(kept) and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)


def _begun(folder: Path) -> tuple[str, int]:
    """When a run began, as wandb names its folder: run-DATE_TIME-ID, and -1, -2, ... for more within a second."""
    parts = folder.name.removeprefix("offline-").split("-")
    return parts[1], int(parts[3]) if parts[3:] else 0


def _note(record: CellRecord, place: Place) -> None:
    if place.mode == "online":
        path = _note_path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, _stamp(record, place))


def _note_path(record: CellRecord) -> Path:
    return record.path.parent / "wandb" / "logged" / f"{content.run_id_of(record)}.json"


def _stamp(record: CellRecord, place: Place) -> dict[str, str | None]:
    where = {"server": _quiet().settings.base_url, "entity": place.entity, "project": place.project}
    return where | {"done_sha256": sha256_of(record.path / "DONE")}
