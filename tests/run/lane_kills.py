"""Sweeps that are killed inside a lane, for the tests of what is left there and how they go on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.config import Config
from lynx_exp.engine.decoding.lane_state import States
from lynx_exp.run.lane_checkpoints import LaneCheckpoints
from lynx_exp.store.read import read_cells
from tests.run.lab import POINTS, Lab, cell, found

CELLS = [
    cell(POINTS[1], ("long", "short"), batch_size=3, waves=2),
    cell(POINTS[4], ("long", "short"), batch_size=2, waves=2),
    cell(POINTS[0], ("long", "short"), batch_size=7, waves=2),
]


SCIENCE = ("responses.parquet", "steps.parquet", "samples.parquet", "metrics.json", "plan.json")


class Killed(BaseException):
    """As SIGKILL: nobody writes anything any more."""


@contextmanager
def kept_every(steps: int, *, killed_behind: int | None = None) -> Iterator[None]:
    """States are written by count instead of by the clock, and the run is killed behind a step."""
    real, seen = LaneCheckpoints.between_steps, 0

    def between(self: LaneCheckpoints, states: States) -> bool:
        nonlocal seen
        seen += 1
        self._due = -math.inf if seen % steps == 0 else math.inf
        kept = real(self, states)
        if seen == killed_behind:
            raise Killed
        return kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaneCheckpoints, "between_steps", between)
        yield


def kill(lab: Lab, configs: list[Config], folder: Path, *, behind: int, every: int = 1) -> None:
    with kept_every(every, killed_behind=behind), pytest.raises(Killed):
        lab.run(configs, folder)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("lanes/*.safetensors"))


def not_run_again(folder: Path) -> int:
    """Steps, as the records of finished cells tell."""
    notes = [note for record in read_cells(folder) for note in record.status["notes"] if "went on" in note]
    return sum(int(note.split("; ")[1].split()[0]) for note in notes)


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory) -> dict[str, dict[str, Any]]:
    lab = Lab(model=model, root=tmp_path_factory.mktemp("undisturbed"))
    folder = lab.folder()
    lab.run(CELLS, folder)
    return found(folder)
