"""Where finished cells are shown besides their folders. A tracker reads the store, and never stops a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lynx_exp.config import TrackerConfig
    from lynx_exp.store.read import CellRecord


class Tracker(Protocol):
    def log_cell(self, record: CellRecord) -> None:
        """Show one finished cell."""

    def log_study(self, study: Path) -> None:
        """Show what the cells of a study's folder say together, and its figures."""

    def close(self) -> None:
        """No more comes."""


class NoTracker:
    """Shows nothing."""

    def log_cell(self, record: CellRecord) -> None: ...

    def log_study(self, study: Path) -> None: ...

    def close(self) -> None: ...


def open_tracker(config: TrackerConfig, study: Path) -> Tracker:
    """The tracker that `config` names, for the cells of the folder `study`."""
    if config.name == "none":
        return NoTracker()
    from lynx_exp.tracking.wandb_tracker import WandbTracker

    return WandbTracker(config, study)
