"""Cells whose steps are recorded: the same files as of steps launched from Python; the status says how they ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lynx_exp.config import Config
from lynx_exp.engine import Engine
from lynx_exp.engine.decoding.graph import Capture, Step, rerun
from lynx_exp.store.read import read_cells
from tests.run.lab import GRID, Lab, cell, found


class Recording(Lab):
    """Its engines record their steps."""

    capture: Capture
    asked_for: Any = "auto"

    def open_engine(self, config: Config) -> Engine:
        engine = super().open_engine(config)
        engine.steps.record_with(self.capture)
        engine.steps.always_leads, engine.max_rows, engine.steps.mode = True, 16, self.asked_for
        return engine


@pytest.fixture
def recording(model: Any, tmp_path: Path) -> Recording:
    made = Recording(model=model, root=tmp_path)
    made.capture = rerun
    return made


def test_the_same_files_whether_steps_are_recorded_or_launched(
    recording: Recording, whole: dict[str, dict[str, Any]]
) -> None:
    folder = recording.folder()
    assert recording.run(GRID, folder).failed == 0
    assert found(folder) == whole
    for record in read_cells(folder):
        ran = record.status["steps"]
        assert (ran["ran"], ran["reason"], ran["rows"], ran["exact"]) == ("captured", None, 16, True)
        assert not ran["compiled"] and record.status["notes"] == []


def test_on_a_cpu_nothing_is_said_of_steps(lab: Lab) -> None:
    folder = lab.folder()
    lab.run(GRID[:1], folder)
    (record,) = read_cells(folder)
    assert "steps" not in record.status


def _broken(_step: Step) -> Step:
    raise RuntimeError("an illegal operation")


def test_what_cannot_be_recorded_is_launched_and_noted(recording: Recording, whole: dict[str, dict[str, Any]]) -> None:
    recording.capture = _broken
    folder = recording.folder()
    assert recording.run(GRID[:2], folder).failed == 0
    assert all(files == whole[name] for name, files in found(folder).items())
    for record in read_cells(folder):
        assert record.status["steps"]["ran"] == "eager"
        assert record.status["steps"]["reason"] == "RuntimeError: an illegal operation"
    told = [note for record in read_cells(folder) for note in record.status["notes"]]
    assert "steps are launched from Python: RuntimeError: an illegal operation" in told
    assert "an illegal operation" in recording.text()


def test_where_recording_was_asked_for_that_is_an_error(recording: Recording) -> None:
    recording.capture, recording.asked_for = _broken, "captured"
    report = recording.run(GRID[:1], recording.folder())
    assert "steps=captured: RuntimeError: an illegal operation" in str(report.outcomes[0].error)


def test_bad_input(lab: Lab) -> None:
    with pytest.raises(ValueError, match=r"steps=fast: must be one of auto, captured, eager"):
        cell(steps="fast")
    with pytest.raises(ValueError, match=r"steps=captured: needs a CUDA device, not device=cpu"):
        lab.run([cell(steps="captured")], lab.folder())
    with pytest.raises(ValueError, match=r"steps=eager: only with backend=transformers; vllm.enforce_eager"):
        cell(steps="eager", backend="vllm")
