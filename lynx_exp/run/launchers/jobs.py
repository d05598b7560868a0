"""What a job of a cluster is: the work that it is given, and what a cluster and a job must be able to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

from lynx_exp.config import Config
from lynx_exp.run.outcomes import Outcome
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.identity import digest

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


class Lost(Exception):
    """A job that ended without telling what became of its cells; `str()` says why, in one line."""


class Job(Protocol):
    """One submitted job."""

    @property
    def name(self) -> str:
        """As the cluster calls it."""

    @property
    def log(self) -> Path:
        """What the job prints. The file is there once the job has started."""

    def done(self) -> bool:
        """Whether it ended, well or not."""

    def outcomes(self) -> list[Outcome]:
        """Of its cells, in their order. Raises Lost."""

    def cancel(self) -> None:
        """Returns at once."""


class Cluster(Protocol):
    @property
    def jobs(self) -> int:
        """At most so many are submitted."""

    @property
    def device(self) -> str | None:
        """What `device=auto` is on its machines; None if the same as here."""

    def logs(self, study: Path) -> Path:
        """Folder of the logs of `study`."""

    def submit(self, works: Sequence[Work], folder: Path) -> Sequence[Job]:
        """One job a work, its files in `folder`. ValueError (one line) if the cluster takes none of them."""

    def close(self) -> None:
        """Nothing more is asked of the jobs."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one job runs; it is pickled. Called again after a preemption, it continues from the cells' journals."""

    configs: list[Config]
    folders: list[Path]
    """Of the cells that the configs come to."""
    working_folder: Path
    """Working directory of the launching process: what relative paths in the configs start from."""
    command: list[str]
    """Of the launching process, for the cells' provenance."""
    packed: bool = True

    def __call__(self) -> list[Outcome]:
        """Run the cells, progress as plain lines. Model by model: one that cannot be loaded costs its own cells."""
        os.chdir(self.working_folder)
        sys.argv = list(self.command)
        found: dict[int, Outcome] = {}
        for numbers in self._by_model():
            try:
                outcomes = run_cells(
                    [self.configs[number] for number in numbers],
                    packed=self.packed,
                    console=Console(emoji=False, soft_wrap=True, force_terminal=False),
                ).outcomes
            except ValueError as error:
                outcomes = [Outcome(state="failed", folder=self.folders[n], error=str(error)) for n in numbers]
            found |= zip(numbers, outcomes, strict=True)
        return [found[number] for number in range(len(self.configs))]

    def checkpoint(self) -> DelayedSubmission:
        """submitit, when it requeues a preempted job: the same work again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _by_model(self) -> list[list[int]]:
        models: dict[str, list[int]] = {}
        for number, config in enumerate(self.configs):
            models.setdefault(digest(asdict(config.model)), []).append(number)
        return list(models.values())
