"""Finished cells and studies, shown to the trackers that their configs name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from lynx_exp.run.planned_cell import Cell
from lynx_exp.store.identity import digest
from lynx_exp.store.read import read_cell
from lynx_exp.tracking import Tracker, open_tracker

Trackers = dict[str, Tracker]
"""Those that are open, by what they were opened with."""


def track(cell: Cell, trackers: Trackers) -> None:
    """Show a cell that is done."""
    if cell.config.tracker.name != "none":
        _tracker_of(cell, trackers).log_cell(read_cell(cell.folder))


def end_tracking(done: Sequence[Cell], trackers: Trackers) -> None:
    """Show the studies that were looked at in the end (`then`), and close all trackers."""
    shown = {}
    for cell in done:
        if cell.config.then and cell.config.tracker.name != "none":
            shown[cell.study] = _tracker_of(cell, trackers)
    for study, tracker in shown.items():
        tracker.log_study(study)
    for tracker in trackers.values():
        tracker.close()


def _tracker_of(cell: Cell, trackers: Trackers) -> Tracker:
    """The one of its study, opened when first asked for."""
    tracker = cell.config.tracker
    key = digest([asdict(tracker), str(cell.study)])
    if key not in trackers:
        trackers[key] = open_tracker(tracker, cell.study)
    return trackers[key]
