"""Where finished cells are shown besides their folders. A tracker reads the store, and never stops a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lynx_exp.config import TrackerConfig
    from lynx_exp.store.read import CellRecord


class Tracker(Protocol):
    def log_cell(self, record: CellRecord, config: dict[str, Any]) -> None:
        """Show one finished cell; `config` is its whole config."""

    def log_figures(self, files: Sequence[Path]) -> None:
        """Show pictures of a study."""

    def close(self) -> None:
        """No more comes."""


class NoTracker:
    """Shows nothing."""

    def log_cell(self, record: CellRecord, config: dict[str, Any]) -> None: ...

    def log_figures(self, files: Sequence[Path]) -> None: ...

    def close(self) -> None: ...


def open_tracker(config: TrackerConfig, study: Path) -> Tracker:
    """The tracker that `config` names, for the cells of the folder `study`."""
    if config.name == "none":
        return NoTracker()
    from lynx_exp.tracking.wandb import WandbTracker

    return WandbTracker(config, study)
